"""TorchScript by ``torch.jit.trace`` that takes images of any size; what loads it has to import this module first."""

from __future__ import annotations

import copy
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.compat import COMPILES, custom_op
from swinv2_mm.errors import UserError
from swinv2_mm.models.kernels.attention_op import Options, attention_on_map, inner_table
from swinv2_mm.models.swin_v2 import SwinTransformerV2, SwinTransformerV2Block
from swinv2_mm.models.window import effective_window, fit_window, padding_to_windows


def trace(model: SwinTransformerV2) -> torch.jit.ScriptModule:
    """``torch.jit.trace`` of a backbone in evaluation, for images ``(B, in_channels, H, W)`` of any batch and size.

    A trace holds numbers for what Python computes from sizes, so the windows of a map are computed inside of one
    operation. It has no gradients.

    Raises:
        UserError: torch is older than 2.6, whose traces do not keep an operation of ours.
    """
    if not COMPILES:
        raise UserError(f'A trace for all sizes needs torch 2.6 or newer, and this is {torch.__version__}.')
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for stage in model.stages:
        for block in stage.blocks:
            block._attend = MethodType(_attend, block)
    # With a side of this, each map is padded before it is merged, and so it is in the trace, also by nothing.
    side = model.patch_size * (2 ** (len(model.stages) - 1) + 1) - (model.patch_size > 1)
    channels = model.patch_embed.proj.in_channels
    weight = model.patch_embed.proj.weight
    images = torch.zeros(2, channels, side, side, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        return torch.jit.trace(_Maps(model), images, check_trace=False)


class _Maps(nn.Module):
    """The maps of a backbone as ``torch.jit.trace`` wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(images))


def _attend(block: SwinTransformerV2Block, x: Tensor) -> Tensor:
    """As ``SwinTransformerV2Block._attend``, for maps ``(B, H, W, C)`` of any size."""
    attn, (H, W) = block.attn, x.shape[1:3]
    balanced = block.window_fit == 'balanced'
    if not block.mask_padding:
        rows, cols = padding_to_windows((H, W), fit_window((H, W), block.window_size, balanced))
        x = F.pad(x, (0, 0, 0, cols, 0, rows))
    table, backend = attn.position_bias(block.window_size), attn.attn_backend
    flags = block.shifted, block.mask_padding, balanced
    out = _attention(attn._qkv(x), attn._scale(), table, *block.window_size, *flags, backend)
    return attn._project(out[:, :H, :W].flatten(3))


@custom_op(
    'swinv2_mm::attention_of_any_size',
    '(Tensor qkv, Tensor scale, Tensor table, int Wh, int Ww, bool shifted, bool masked, bool balanced, str backend)'
    ' -> Tensor',
)
def _attention(
    qkv: Tensor,
    scale: Tensor,
    table: Tensor,
    Wh: int,
    Ww: int,
    shifted: bool,
    masked: bool,
    balanced: bool,
    backend: str,
) -> Tensor:
    """Attention in the windows that a block uses on a map ``(B, H, W, 3, nH, d)``; returns ``(B, H, W, nH, d)``."""
    H, W = qkv.shape[1:3]
    window = fit_window((H, W), (Wh, Ww), balanced)
    window = effective_window((H, W), window) if masked else window
    inner = inner_table(table, window)
    return attention_on_map(qkv, None, scale, inner, Options((H, W), shifted, 'auto', backend))


@_attention.register_fake
def _(qkv, scale, table, Wh, Ww, shifted, masked, balanced, backend):
    return qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
