"""Cosine attention on a CPU by the C++ of ``csrc/window_attention.cpp``, see :mod:`~swinv2_mm.models.kernels.cpp`."""

from __future__ import annotations

import torch
from torch import Tensor

from swinv2_mm.models.kernels import cpp
from swinv2_mm.models.kernels.cpp import TYPES, addresses, check, library
from swinv2_mm.models.window import shift_of

MAX_HEAD_WIDTH = 64
# A thread keeps the bias of one head over pairs of slots, and its gradient: 8 MiB for a window of 32.
MAX_SLOTS = 1024


def may_take(x: Tensor, head_width: int, slots: int) -> bool:
    """Whether :func:`takes` would be true of what a layer makes of ``x``, as far as that can be told before."""
    return head_width <= MAX_HEAD_WIDTH and slots <= MAX_SLOTS and cpp.may_take(x) and library() is not None


def takes(qkv: Tensor, scale: Tensor, table: Tensor) -> bool:
    """Whether :func:`forward` and :func:`backward` compute with these.

    False under a dispatch mode (FLOP counter, fake tensors), which could not see the C++ call.
    """
    slots = (table.shape[1] + 1) * (table.shape[2] + 1) // 4
    return may_take(qkv, qkv.shape[5], slots) and scale.dtype == table.dtype == torch.float32


def forward(
    qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, shifted: bool, out: Tensor | None = None
) -> Tensor:
    """See :func:`~swinv2_mm.models.kernels.attention_op.attention_on_map`; the window is that of the table.

    Args:
        out: Where to, ``(B, Hp, Wp, nH, d)``: neighbouring heads of a contiguous map, say.
        qkv, bias, scale, table, shifted: As there.
    """
    qkv, bias, scale, table = _readable(qkv, bias, scale, table)
    shape = *qkv.shape[:3], *qkv.shape[4:]
    out = qkv.new_empty(shape) if out is None else out
    check(out[0, 0, 0] if out.numel() else None, qkv.dtype, *shape[3:])
    library().swinv2_attention_forward(
        TYPES[qkv.dtype], *addresses(qkv, bias, scale, table, out), out.stride(2), *_sizes(qkv, table, shifted)
    )
    return out


def backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, shifted: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of ``qkv``, ``bias``, ``scale`` and ``table`` from that of the result."""
    given = bias
    qkv, bias, scale, table = _readable(qkv, bias, scale, table)
    grad = grad.contiguous()
    check(grad, qkv.dtype, *qkv.shape[:3], *qkv.shape[4:])
    found = [None if tensor is None else torch.empty_like(tensor) for tensor in (qkv, bias, scale, table)]
    library().swinv2_attention_backward(
        TYPES[qkv.dtype], *addresses(qkv, bias, scale, table, grad, *found), *_sizes(qkv, table, shifted)
    )
    return found[0], None if given is None else found[1].to(given.dtype), *found[2:]


def _readable(qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor) -> tuple[Tensor | None, ...]:
    """All of them as the C++ takes them."""
    bias = None if bias is None else bias.float().contiguous()
    qkv, scale, table = qkv.contiguous(), scale.contiguous(), table.contiguous()
    nH, d = qkv.shape[4:]
    check(bias, torch.float32, 3 * nH * d)
    check(scale, torch.float32, nH, 1, 1)
    check(table, torch.float32, nH, *table.shape[1:])
    return qkv, bias, scale, table


def _sizes(qkv: Tensor, table: Tensor, shifted: bool) -> tuple[int, ...]:
    """What the functions want to know after the tensors."""
    B, H, W, _, nH, d = qkv.shape
    window = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
    return B, H, W, nH, d, *window, *shift_of((H, W), window, shifted), torch.get_num_threads()
