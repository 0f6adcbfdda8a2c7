"""Costs of a model: parameters, and multiply-adds of one image, counted without memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.engine.checks.lookup import with_key
from swinv2_mm.engine.checks.meta_forward import ROIS, forward_on_meta
from swinv2_mm.errors import UserError, say

Pair = tuple[int, int]

LARGEST = 2**16  # pixels on a side


@dataclass(frozen=True)
class Complexity:
    """The parameters of a model, and its multiply-adds for one image."""

    size: Pair  # of the image that enters the backbone, with the padding of a batch
    parameters: int  # of the whole model, heads that only train included
    backbone_parameters: int
    stages: tuple[int, ...]  # multiply-adds, see `SwinTransformerV2.multiply_adds`
    heads: int | None  # multiply-adds of everything behind the backbone; None if they cannot be counted

    @property
    def backbone(self) -> int:
        return sum(self.stages)

    @property
    def total(self) -> int | None:
        return None if self.heads is None else self.backbone + self.heads


def check_backbone(model: dict) -> dict:
    """Return the config of a model's SwinV2 backbone.

    Raises:
        UserError: The model has another backbone.
    """
    backbone: Any = model.get('backbone')
    kind = backbone.get('type') if isinstance(backbone, dict) else backbone
    if kind != 'swinv2_mm.SwinTransformerV2':
        raise UserError(f'the backbone of the model is {kind}, not swinv2_mm.SwinTransformerV2.')
    return backbone


def image_shape(asked: Sequence[int] | None, default: Pair | None) -> Pair:
    """Return the rows and columns that ``--shape`` asks for: two numbers, or one for both, or the default.

    Raises:
        UserError: They are no size of an image.
    """
    shape = tuple(asked or default or ())
    shape = shape * 2 if len(shape) == 1 else shape
    if len(shape) != 2 or not 1 <= min(shape) <= max(shape) <= LARGEST:
        raise UserError(
            f'--shape: expected rows and columns in pixels, up to {LARGEST}, as in --shape 800 1333, not {asked}.'
        )
    return shape


def build_on_meta(model: dict, scope: str) -> nn.Module:
    """Build the ``model`` of a config, in its ``default_scope``, without memory for its parameters.

    Raises:
        UserError: Its backbone is not ours, or it cannot be built.
    """
    check_backbone(model)
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'), with_key(model, 'model'):
        return MODELS.build(model).eval()


def complexity(model: Any, size: Pair) -> Complexity:
    """Count a model and a prediction for one image, or for one crop where it slides over the image.

    A multiply-add counts once, as in most papers. Norms, soft-max and other element-wise operations do not count, nor
    does sampling (of RoIs, in deformable attention), nor the position bias (see ``SwinTransformerV2.multiply_adds``).
    Padding is work and counts: of the image for its batch, of maps to windows. Box heads get as many proposals, and
    mask heads as many boxes, as the test settings allow at most. Auxiliary heads take no part in a prediction.

    Args:
        model: From :func:`build_on_meta`. It cannot be used afterwards: its backbone and proposals are replaced.
        size: ``(H, W)`` of the image, in pixels.
    """
    multiple = getattr(model.data_preprocessor, 'pad_size_divisor', 1) or 1
    rows, columns = (-(-side // multiple) * multiple for side in size)
    size = rows, columns
    try:
        heads = _heads(model, size)
    except Exception as error:  # a head of any code base, which may need values
        say(f'warning: the heads of {type(model).__name__} cannot be counted without memory: {error}')
        heads = None
    stages = tuple(model.backbone.multiply_adds(size))
    return Complexity(size, count_parameters(model), count_parameters(model.backbone), stages, heads)


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _heads(model: Any, size: Pair) -> int:
    """Multiply-adds behind the backbone, as PyTorch's counter sees them on the meta device."""
    with FlopCounterMode(display=False) as counter:
        forward_on_meta(model, size)
    flops, regions = counter.get_total_flops(), {}
    if hasattr(model, 'roi_head'):
        regions = {'bbox_head': model.test_cfg.rpn.max_per_img, 'mask_head': model.test_cfg.rcnn.max_per_img}
    for head, count in regions.items():
        name, counts = f'{type(model).__name__}.roi_head.{head}', counter.get_flop_counts()
        names = [name] if name in counts else [key for key in counts if key.rpartition('.')[0] == name]  # a list
        own = sum(sum(counts[key].values()) for key in names)
        flops += own * count // ROIS - own
    return flops // 2
