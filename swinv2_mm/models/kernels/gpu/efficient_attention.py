"""Cosine attention inside windows by torch's memory-efficient kernel for GPUs.

``scaled_dot_product_attention`` may choose cuDNN's kernel, which makes a plan for each shape and has no gradient for a
bias. This one has, so that no logits exist, forward or backward, but for that gradient before it is summed over the
windows. Windows without a mask share one bias and one call. Those with a mask get a bias of each, and a second call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from swinv2_mm.models.kernels.choose import in_given_types
from swinv2_mm.models.position_bias import offset_index, window_of
from swinv2_mm.models.window import WindowGroup, cut

# The direction of a shorter vector consists of rounding errors.
MIN_NORM = 1e-6
# The limit for the bias of the windows of a call where each has its own, and for its gradient.
CALL_BYTES = 256 * 2**20
# The windows of a call: the last dimension of CUDA's grid.
CALL_WINDOWS = 65535
# The kernel reads rows of a bias that start at multiples of this many numbers.
ALIGNMENT = 16
# The bias of a pair that may not attend: exp() of it is 0. It is finite, and float16 holds it: a running maximum that
# starts at -inf may become NaN where a whole block of keys is masked.
MASKED = -1e4

Pieces = list[tuple[slice, Tensor]]  # windows, and their bias, (windows, nH, N, N)


def efficient_attention(
    qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup], windows: int | None
) -> Tensor:
    """``softmax(scale * cos(q, k) + bias) v``, not differentiable twice; ``choose.py`` says where it can be used.

    Args:
        qkv: Queries, keys and values of each window's slots, ``(G, N, 3, nH, d)``; float16, bfloat16 or float32.
        scale: ``(nH, 1, 1)``.
        table: The bias per offset, ``(nH, 2 Wh - 1, 2 Ww - 1)`` with ``N = Wh * Ww``.
        groups: Which windows share which mask; they cover all ``G``, in order.
        windows: The most windows of a call; None for no limit.

    Returns:
        ``(G, N, nH, d)``.
    """
    return _EfficientAttention.apply(qkv, scale, table, groups, windows)


class _EfficientAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup], windows: int | None):
        differentiable = any(ctx.needs_input_grad)
        out, *kept = forward(qkv, scale, table, groups, windows, differentiable)
        if differentiable:
            ctx.save_for_backward(scale, table, out, *kept)
            ctx.groups, ctx.windows = groups, windows
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *backward(grad, *ctx.saved_tensors, groups=ctx.groups, windows=ctx.windows), None, None


@in_given_types
def forward(
    qkv: Tensor,
    scale: Tensor,
    table: Tensor,
    groups: Sequence[WindowGroup],
    windows: int | None,
    differentiable: bool = False,
) -> list[Tensor]:
    """The output, and for :func:`backward` unit vectors, their former lengths, and what the kernel wants back."""
    unit, lengths = _normalised(qkv, scale)
    outs, kept = [], []
    for piece, bias in _pieces(table, qkv.dtype, groups, windows, differentiable):
        out, *rest = torch.ops.aten._scaled_dot_product_efficient_attention(
            *_heads_first(unit[piece]), bias, differentiable, scale=1.0
        )
        outs.append(out.transpose(1, 2))
        kept += rest  # the sums of the soft-max, and two numbers of its dropout
    return [outs[0] if len(outs) == 1 else torch.cat(outs), unit, lengths, *kept]


@in_given_types
def backward(
    grad: Tensor,
    scale: Tensor,
    table: Tensor,
    out: Tensor,
    unit: Tensor,
    lengths: Tensor,
    *kept: Tensor,
    groups: Sequence[WindowGroup],
    windows: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``qkv``, ``scale`` and ``table`` from that of :func:`forward`'s output."""
    grad, qkv_grad, bias_grad = grad.contiguous(), torch.empty_like(unit), None
    pieces = _pieces(table, unit.dtype, groups, windows, True)
    for (piece, bias), *rest in zip(pieces, kept[::3], kept[1::3], kept[2::3], strict=True):
        *heads, of_bias = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            grad[piece].transpose(1, 2),
            *_heads_first(unit[piece]),
            bias,
            out[piece].transpose(1, 2),
            *rest,
            0.0,
            [True] * 4,
            scale=1.0,
        )
        torch.stack([x.transpose(1, 2) for x in heads], dim=2, out=qkv_grad[piece])
        of_bias = of_bias.sum(0, dtype=table.dtype)
        bias_grad = of_bias if bias_grad is None else bias_grad.add_(of_bias)
    assert bias_grad is not None
    # Queries and keys: what lies along a vector is lost. A query's is scaled, so it is longer than 1 by that factor.
    scale = scale[..., 0]  # (nH, 1)
    vectors, vectors_grad = unit[:, :, :2], qkv_grad[:, :, :2]
    along = (vectors * vectors_grad).sum(-1, keepdim=True, dtype=lengths.dtype)  # (G, N, 2, nH, 1)
    scale_grad = along[:, :, 0].div_(scale).sum((0, 1))
    along[:, :, 0].div_(scale)
    # addcmul takes one type before torch 2.2.
    vectors_grad.addcmul_(vectors, along.to(vectors.dtype), value=-1).div_(lengths[:, :, :2])
    table_grad = torch.zeros(table.shape, dtype=table.dtype, device=table.device)
    index = offset_index(window_of(table), table.device)
    table_grad.view(len(table), -1).index_add_(1, index.view(-1), bias_grad.flatten(1))
    return qkv_grad, scale_grad[..., None], table_grad


def _normalised(qkv: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """``scale * q / |q|``, ``k / |k|`` and ``v``, and what they were divided by, in float32 at least.

    Vectors shorter than ``MIN_NORM`` become zero, as their gradients do.
    """
    exact = torch.promote_types(qkv.dtype, torch.float32)
    lengths = torch.linalg.vector_norm(qkv, dim=-1, keepdim=True, dtype=exact)  # (G, N, 3, nH, 1)
    F.threshold_(lengths, MIN_NORM, math.inf)
    lengths[:, :, 0].div_(scale[..., 0])
    lengths[:, :, 2].fill_(1)
    return torch.div(qkv, lengths, out=torch.empty_like(qkv)), lengths


def _pieces(
    table: Tensor, dtype: torch.dtype, groups: Sequence[WindowGroup], windows: int | None, differentiable: bool
) -> Iterator[tuple[slice, Tensor]]:
    """The windows of each call, and their bias, ``(windows, nH, N, N)``; MASKED where a query must not see a key."""
    index = offset_index(window_of(table), table.device)
    N = len(index)
    missing = -N % ALIGNMENT
    index = F.pad(index, (0, missing)) if missing else index
    bias = table.to(dtype).flatten(1).index_select(1, index.view(-1)).view(len(table), *index.shape)
    fits = max(1, CALL_BYTES // (bias.numel() * bias.element_size()))
    for group in groups:
        most = min(CALL_WINDOWS, windows or CALL_WINDOWS)
        if differentiable or group.regions is not None:
            most = min(most, fits)
        for piece in cut(group.start, group.stop, most):
            outside, own = group.outside(piece.start, piece.stop), bias
            if outside is not None:
                own = bias.masked_fill(F.pad(outside, (0, missing)) if missing else outside, MASKED)
            yield piece, own[..., :N].expand(piece.stop - piece.start, -1, -1, -1)


def _heads_first(unit: Tensor) -> Iterator[Tensor]:
    """``(n, N, 3, nH, d)`` to three times ``(n, nH, N, d)``, as views."""
    return (x.transpose(1, 2) for x in unit.unbind(2))
