"""The C++ of ``csrc/window_attention.cpp`` for tensors: cosine attention on a CPU.

:mod:`swinv2_mm.models.kernels.choose` says for which tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from swinv2_mm.models.kernels import cpp
from swinv2_mm.models.kernels.cpp import TYPES, addresses, check
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
    cpp.library().swinv2_attention_forward(
        TYPES[qkv.dtype], *addresses(qkv, bias, scale, table, out), out.stride(2), *_sizes(qkv, table, shifted)
    )
    return out


def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, shifted: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of ``qkv``, ``bias``, ``scale`` and ``table`` from the gradient of the result."""
    given = bias
    qkv, bias, scale, table = _readable(qkv, bias, scale, table)
    grad = grad.contiguous()
    check(grad, qkv.dtype, *qkv.shape[:3], *qkv.shape[4:])
    found = [None if tensor is None else torch.empty_like(tensor) for tensor in (qkv, bias, scale, table)]
    cpp.library().swinv2_attention_backward(
        TYPES[qkv.dtype], *addresses(qkv, bias, scale, table, grad, *found), *_sizes(qkv, table, shifted)
    )
    return found[0], None if given is None else found[1].to(given.dtype), *found[2:]


def _readable(qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor) -> tuple[Tensor | None, ...]:
    """The tensors in the types and the layout that the C++ reads."""
    bias = None if bias is None else bias.float().contiguous()
    qkv, scale, table = qkv.contiguous(), scale.contiguous(), table.contiguous()
    nH, d = qkv.shape[4:]
    check(bias, torch.float32, 3 * nH * d)
    check(scale, torch.float32, nH, 1, 1)
    check(table, torch.float32, nH, *table.shape[1:])
    return qkv, bias, scale, table


def _sizes(qkv: Tensor, table: Tensor, shifted: bool) -> tuple[int, ...]:
    """The arguments of the functions that follow the tensors."""
    B, H, W, _, nH, d = qkv.shape
    window = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
    return B, H, W, nH, d, *window, *shift_of((H, W), window, shifted), torch.get_num_threads()
