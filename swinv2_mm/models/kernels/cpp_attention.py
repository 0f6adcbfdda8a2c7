"""The C++ of ``csrc/window_attention.cpp``, cosine attention on a CPU; ``choose.py`` says for which tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from swinv2_mm.models.kernels.cpp import check, run
from swinv2_mm.models.position_bias import window_of
from swinv2_mm.models.window import shift_of


def forward(
    qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, shifted: bool, out: Tensor | None = None
) -> Tensor:
    """Attention on a map, as :func:`~swinv2_mm.models.kernels.attention_op.attention_on_map`.

    Args:
        qkv, bias, scale, table, shifted: As there; the size of the table gives the window.
        out: Receives the result, ``(B, Hp, Wp, nH, d)``; it may be some neighbouring heads of a contiguous map.
    """
    qkv, bias, scale, table = _readable(qkv, bias, scale, table)
    shape = *qkv.shape[:3], *qkv.shape[4:]
    out = qkv.new_empty(shape) if out is None else out
    check(out[0, 0, 0] if out.numel() else None, qkv.dtype, *shape[3:])
    sizes = out.stride(2), *_sizes(qkv, table, shifted)
    run('swinv2_attention_forward', qkv.dtype, (qkv, bias, scale, table, out), *sizes)
    return out


def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, shifted: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of ``qkv``, ``bias``, ``scale`` and ``table`` from the gradient of the result."""
    given = qkv, added, scale, table = _readable(qkv, bias, scale, table)
    grad = grad.contiguous()
    check(grad, qkv.dtype, *qkv.shape[:3], *qkv.shape[4:])
    bias_grad = None if added is None else torch.empty_like(added)
    found = torch.empty_like(qkv), bias_grad, torch.empty_like(scale), torch.empty_like(table)
    run('swinv2_attention_backward', qkv.dtype, (*given, grad, *found), *_sizes(qkv, table, shifted))
    return found[0], None if bias is None or bias_grad is None else bias_grad.to(bias.dtype), *found[2:]


def _readable(
    qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The tensors in the types and the layout that the C++ reads."""
    bias = None if bias is None else bias.float().contiguous()
    qkv, scale, table = qkv.contiguous(), scale.contiguous(), table.contiguous()
    nH, d = qkv.shape[4:]
    check(bias, torch.float32, 3 * nH * d)
    check(scale, torch.float32, nH, 1, 1)
    check(table, torch.float32, nH, *table.shape[1:])
    return qkv, bias, scale, table


def _sizes(qkv: Tensor, table: Tensor, shifted: bool) -> tuple[int, ...]:
    """The sizes and shifts that follow the tensors."""
    B, H, W, _, nH, d = qkv.shape
    window = window_of(table)
    return B, H, W, nH, d, *window, *shift_of((H, W), window, shifted)
