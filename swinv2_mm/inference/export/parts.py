"""The modules that are exported: what goes in and what comes out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.window import padding_to_windows


class Normalized(nn.Module):
    """Scales pixels of 0 to 255 as the model was trained, pads, and changes to the type of the weights.

    Args:
        preprocessor: Of the model; its mean and std are taken.
        divisor: Sides are padded to multiples of it, at the bottom and at the right.
        pad_value: After scaling.
    """

    def __init__(self, preprocessor: Any, divisor: int = 1, pad_value: float = 0.0) -> None:
        super().__init__()
        self.divisor, self.pad_value = divisor, pad_value
        for name in ('mean', 'std'):
            given = getattr(preprocessor, name, None)
            self.register_buffer(name, None if given is None else given.detach().float().view(1, -1, 1, 1))

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """``(B, 3, H, W)`` in float32 to the input of the backbone."""
        x = images if self.mean is None else (images - self.mean) / self.std
        if self.divisor > 1:
            down, right = padding_to_windows((x.shape[2], x.shape[3]), (self.divisor, self.divisor))
            x = F.pad(x, (0, right, 0, down), value=self.pad_value)
        return x.to(dtype)


class Part(nn.Module):
    """What is exported of a model; it takes images ``(B, 3, H, W)`` in float32 and gives float32.

    Attributes:
        outputs: The names of the results.
        task: What the file is for.
        single: It takes one image, not a batch.
    """

    outputs: tuple[str, ...]
    task: str
    single = False

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def half(self) -> Part:
        self.model.half()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype


class BackbonePart(Part):
    """The backbone alone: normalised images to feature maps."""

    task = 'features'

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.backbone if hasattr(model, 'backbone') else model)
        self.outputs = tuple(f'features{i}' for i in self.model.out_indices)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(one.float() for one in self.model(images.to(self.dtype)))


class SegmentorPart(Part):
    """A segmentor: pixels to the class of each, or to the logits ``(B, classes, H, W)``."""

    task = 'segmentation'

    def __init__(self, model: Any, logits: bool = False) -> None:
        super().__init__(model)
        self.divisor = int((model.data_preprocessor.test_cfg or {}).get('size_divisor') or 1)
        self.normalized, self.logits = Normalized(model.data_preprocessor, self.divisor), logits
        self.outputs = ('logits',) if logits else ('classes',)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.scores(images)
        if self.logits:
            return logits
        if logits.shape[1] == 1:
            return (logits[:, 0].sigmoid() > self.model.decode_head.threshold).long()
        return logits.argmax(dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """The logits, ``(B, classes, H, W)``."""
        x = self.normalized(images, self.dtype)
        logits = self.model.decode_head(self.model.extract_feat(x)).float()
        logits = F.interpolate(logits, size=x.shape[2:], mode='bilinear', align_corners=self.model.align_corners)
        return logits if self.divisor == 1 else logits[:, :, : images.shape[2], : images.shape[3]]


class DenseDetectorPart(Part):
    """A detector of one stage: pixels to the maps of its head, the levels of each result one after the other."""

    task = 'detection maps'

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        given = model.data_preprocessor
        self.normalized = Normalized(given, int(given.pad_size_divisor), float(given.pad_value))
        names = ('scores', 'boxes', 'centerness')[: 3 if type(model.bbox_head).__name__ == 'ATSSHead' else 2]
        levels = len(model.bbox_head.prior_generator.strides)
        self.outputs = tuple(f'{name}{level}' for name in names for level in range(levels))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(self.normalized(images, self.dtype))
        return tuple(one.float() for level in self.model.bbox_head(maps) for one in level)
