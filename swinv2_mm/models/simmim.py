"""SimMIM (arXiv 2111.09886): a backbone learns from images without labels, by painting what was hidden from it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from swinv2_mm.models import arguments
from swinv2_mm.models.pretrained_windows import loads_backbone
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import MODELS


def draw_mask(batch: int, grid: tuple[int, int], ratio: float, device: torch.device | str = 'cpu') -> Tensor:
    """Hide ``ceil(ratio * rows * columns)`` patches of each image, drawn by torch's global generator of the device.

    Returns:
        Boolean, ``(batch, rows, columns)``, True where a patch is hidden.
    """
    rows, columns = grid
    hidden = math.ceil(ratio * (rows * columns))
    order = torch.rand(batch, rows * columns, device=device).argsort(dim=1)  # a permutation of the patches
    return (order < hidden).view(batch, rows, columns)


def normalise_locally(images: Tensor, side: int) -> Tensor:
    """Images by their :func:`local_statistics`: targets on which a model cannot gain by painting an average colour."""
    mean, deviation = local_statistics(images, side)
    return (images - mean) / deviation


def local_statistics(images: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the square around each pixel, per channel.

    Args:
        images: ``(B, C, H, W)``.
        side: Side of the square in pixels, odd. Pixels beyond the border do not count.

    Returns:
        Both ``(B, C, H, W)``.
    """

    def average(x: Tensor) -> Tensor:
        # First over columns, then over rows: of 2209 numbers per pixel, for a side of 47, this reads 94.
        for kernel in ((side, 1), (1, side)):
            padding = kernel[0] // 2, kernel[1] // 2
            x = F.avg_pool2d(x, kernel, stride=1, padding=padding, count_include_pad=False)
        return x

    rows, columns = (_inside(length, side, images) for length in images.shape[-2:])
    count = rows[:, None] * columns  # (H, W), the pixels in each square
    mean = average(images)
    variance = (average(images**2) - mean**2) * (count / (count - 1))
    return mean, (variance.clamp(min=0) + 1e-6).sqrt()


def _inside(length: int, side: int, like: Tensor) -> Tensor:
    """For each place on an axis, how many places are at most half a side away, ``(length,)``."""
    place = torch.arange(length, device=like.device)
    count = (place + side // 2).clamp(max=length - 1) - (place - side // 2).clamp(min=0) + 1
    return count.to(like.dtype)


@MODELS.register_module()
class SimMIM(BaseModel):
    """Masked image modelling, paper section 3: hidden patches, a one-layer head, L1 on the hidden pixels.

    Patches of the image are hidden behind one learned token after the patch embedding. A 1x1 convolution on the last
    map paints all pixels; the loss looks at the hidden ones. Masks come from torch's generator, which ``EpochSeedHook``
    seeds, so resumed runs see the masks of uninterrupted ones.

    Args:
        backbone: Config of a :class:`~swinv2_mm.models.swin_v2.SwinTransformerV2`, which emits its last map only.
        mask_patch_size: Side of the patches that are hidden together, in pixels; a multiple of the backbone's
            ``patch_size`` that divides the images.
        mask_ratio: Share of the patches that is hidden, above 0 and below 1.
        norm_target: Side of the square by which the targets are normalised, in pixels, odd; None keeps them as they
            are. Microsoft pre-trains SwinV2 with 47, and Swin V1 without.
        data_preprocessor: As in mmengine.
        init_cfg: As in mmengine; ``dict(type='swinv2_mm.Pretrained', checkpoint=...)`` loads a whole SimMIM, and
            replaces what ``backbone.init_cfg`` has loaded.

    Raises:
        ValueError: A value is out of range, images are no multiple of ``mask_patch_size``, or a mask does not fit them.
    """

    def __init__(
        self,
        backbone: dict,
        mask_patch_size: int = 32,
        mask_ratio: float = 0.6,
        norm_target: int | None = 47,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if arguments.is_sequence(init_cfg):
            init_cfg = sorted(init_cfg, key=loads_backbone)  # loaded weights come last
        super().__init__(data_preprocessor, init_cfg)
        kind = backbone.get('type')
        found = MODELS.get(kind) if isinstance(kind, str) else kind
        if not (isinstance(found, type) and issubclass(found, SwinTransformerV2)):
            raise ValueError(
                f"backbone.type={kind!r} of SimMIM: set it to 'swinv2_mm.SwinTransformerV2', which hides patches "
                'behind its patch embedding.'
            )
        self.backbone = MODELS.build({'out_indices': (-1,), **backbone})
        stages = len(self.backbone.num_features)
        if tuple(self.backbone.out_indices) != (stages - 1,):
            raise ValueError(
                f'backbone.out_indices={self.backbone.out_indices} of SimMIM: leave it out. The head reads the last '
                'map, and norms of others would learn nothing.'
            )
        patch = self.backbone.patch_size
        if arguments.integer('mask_patch_size', mask_patch_size, 1) % patch:
            raise ValueError(f'mask_patch_size={mask_patch_size}: take a multiple of patch_size={patch}.')
        if not isinstance(mask_ratio, (int, float)) or not 0 < mask_ratio < 1:
            raise ValueError(f'mask_ratio={mask_ratio!r}: take a number above 0 and below 1, as 0.6.')
        if norm_target is not None and arguments.integer('norm_target', norm_target, 3) % 2 == 0:
            raise ValueError(f'norm_target={norm_target}: take an odd number, or None for targets as they are.')
        self.mask_patch_size = mask_patch_size
        self.mask_ratio = mask_ratio
        self.norm_target = norm_target
        self.stride = patch * 2 ** (stages - 1)  # pixels per token of the last map
        self.channels = self.backbone.patch_embed.proj.in_channels
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.backbone.num_features[0]))
        self.decoder = nn.Conv2d(self.backbone.num_features[-1], self.stride**2 * self.channels, kernel_size=1)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def init_weights(self) -> None:
        """As mmengine's, but weights of a whole SimMIM come last: they replace all that the backbone starts with."""
        given = self.init_cfg if arguments.is_sequence(self.init_cfg) else [self.init_cfg]
        if any(map(loads_backbone, given)) and not self.is_init:
            self.backbone.init_weights()
        super().init_weights()

    def forward(
        self, inputs: Tensor, data_samples: object = None, mode: str = 'tensor', mask: Tensor | None = None
    ) -> Tensor | dict[str, Tensor]:
        """Paint images, or compute the loss.

        Args:
            inputs: Preprocessed images, ``(B, C, H, W)``.
            data_samples: Not looked at; mmengine's loops pass it.
            mode: ``'loss'``, or anything else for the painted images.
            mask: Boolean, ``(B, H / mask_patch_size, W / mask_patch_size)``; None draws one.

        Returns:
            ``dict(loss=...)``, a scalar; or ``(B, C, H, W)``, no narrower than float32, in the units of the targets.
        """
        if mask is None:
            mask = self.draw_mask(inputs)
        painted = self.paint(inputs, mask)
        return {'loss': self.loss(inputs, painted, mask)} if mode == 'loss' else painted

    def draw_mask(self, images: Tensor) -> Tensor:
        """Draw a mask for images ``(B, C, H, W)``, see :func:`draw_mask`."""
        return draw_mask(len(images), self._grid(images), self.mask_ratio, images.device)

    def paint(self, images: Tensor, mask: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` as the model sees them through a mask ``(B, rows, columns)``; of their shape."""
        expected = (len(images), *self._grid(images))
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(
                f'mask of {mask.dtype} and shape {tuple(mask.shape)}: for images of shape {tuple(images.shape)} give a '
                f'boolean mask of shape {expected}, one value per square of {self.mask_patch_size} pixels '
                '(mask_patch_size), or None to draw one.'
            )
        hidden = _enlarged(mask, self.mask_patch_size // self.backbone.patch_size)  # (B, H/patch, W/patch)
        (features,) = self.backbone(images, (hidden, self.mask_token))
        painted = F.pixel_shuffle(self.decoder(features), self.stride)  # (B, C, h * stride, w * stride)
        return _single_precision(painted[..., : images.shape[-2], : images.shape[-1]])

    def loss(self, images: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
        """The mean L1 distance of hidden pixels to the images, or to their local normalisation; a scalar."""
        target = _single_precision(images)
        if self.norm_target is not None:
            target = normalise_locally(target, self.norm_target)
        hidden = _enlarged(mask, self.mask_patch_size).unsqueeze(1)  # (B, 1, H, W)
        distance = (target - painted).abs() * hidden
        return distance.sum() / (hidden.sum() + 1e-5) / self.channels

    def _grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of the squares that are hidden or not; a ValueError if they do not divide the images."""
        side, (height, width) = self.mask_patch_size, images.shape[-2:]
        if height % side or width % side:
            raise ValueError(
                f'inputs of {height} x {width} pixels: SimMIM hides squares of {side} pixels (mask_patch_size), which '
                f'must divide the images; crop them to multiples of {side}.'
            )
        return height // side, width // side


def _enlarged(mask: Tensor, factor: int) -> Tensor:
    """``(B, rows, columns)`` to ``(B, rows * factor, columns * factor)``."""
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def _single_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
