"""Window attention on a feature map as one operation that a compiler calls as it is, whatever the size of the map.

Which token sits in which slot, and which windows need a mask, is planned in Python numbers. A compiler that traced the
plan would bake one image size into its graph; inside an operation it sees neither the plan nor the logits.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.models.cosine_attention import _CosineAttention, cosine_attention
from swinv2_mm.models.window import WindowLayout, window_layout, window_partition, window_reverse


def map_attention(
    qkv: Tensor, scale: Tensor, table: Tensor, size: tuple[int, int], window: tuple[int, int], shifted: bool,
    attn_chunk: int | str | None,
) -> Tensor:
    """:func:`~swinv2_mm.models.cosine_attention.cosine_attention` in the windows of a map.

    Args:
        qkv: Queries, keys and values of the tokens, ``(B, Hp, Wp, 3, nH, d)``; padding that is missing is masked.
        scale: ``(nH, 1, 1)``.
        table: ``(nH, 2 Ph - 1, 2 Pw - 1)``, the bias of each offset in a window of ``(Ph, Pw)``, at least ``window``.
        size: ``(H, W)``, which is wanted, at most ``(Hp, Wp)``.
        window: ``(Wh, Ww)``, in tokens, at most ``(Hp, Wp)``.
        shifted: Shift by half a window along each axis that has more than one window.
        attn_chunk: See :func:`~swinv2_mm.models.cosine_attention.at_a_time`.

    Returns:
        ``(B, H, W, nH, d)``.
    """
    return _attention(qkv, scale, table, list(size), list(window), shifted, 0 if attn_chunk == 'auto' else attn_chunk)


@torch.library.custom_op('swinv2_mm::map_attention', mutates_args=())
def _attention(
    qkv: Tensor, scale: Tensor, table: Tensor, size: list[int], window: list[int], shifted: bool,
    attn_chunk: int | None,
) -> Tensor:
    layout, slots = _to_windows(qkv, window, shifted)
    out = cosine_attention(slots, scale, _inner(table, window), layout.groups, _chunk(attn_chunk))
    out = window_reverse(out.flatten(2), layout, qkv.shape[1:3]).unflatten(3, qkv.shape[4:])
    return out[:, :size[0], :size[1]].contiguous()


@_attention.register_fake
def _(qkv, scale, table, size, window, shifted, attn_chunk):
    return qkv.new_empty(qkv.shape[0], *size, *qkv.shape[4:])


@torch.library.custom_op('swinv2_mm::map_attention_backward', mutates_args=())
def _attention_backward(
    grad: Tensor, qkv: Tensor, scale: Tensor, table: Tensor, size: list[int], window: list[int], shifted: bool,
    attn_chunk: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``qkv``, ``scale`` and ``table``."""
    layout, slots = _to_windows(qkv, window, shifted)
    padded = qkv.new_zeros(*qkv.shape[:3], *qkv.shape[4:])
    padded[:, :size[0], :size[1]] = grad
    _, grad = _to_windows(padded, window, shifted)
    grad.flatten(0, 1).index_fill_(0, layout.pads, 0)  # nobody reads what padding attended to
    saved = SimpleNamespace(saved_tensors=(slots, scale, _inner(table, window)), groups=layout.groups,
                            attn_chunk=_chunk(attn_chunk))
    qkv_grad, scale_grad, inner_grad, *_ = _CosineAttention.backward(saved, grad)
    table_grad = torch.zeros_like(table)
    _inner(table_grad, window).copy_(inner_grad)
    return window_reverse(qkv_grad.flatten(2), layout, qkv.shape[1:3]).view_as(qkv), scale_grad, table_grad


@_attention_backward.register_fake
def _(grad, qkv, scale, table, size, window, shifted, attn_chunk):
    return qkv.new_empty(qkv.shape), torch.empty_like(scale), torch.empty_like(table)


def _to_windows(x: Tensor, window: list[int], shifted: bool) -> tuple[WindowLayout, Tensor]:
    """The plan for a map ``(B, H, W, ...)``, and its slots, ``(B * nW, N, ...)``."""
    layout = window_layout(*x.shape[:3], tuple(window), shifted, x.device)
    slots = window_partition(x.flatten(3), layout)
    return layout, slots.view(*slots.shape[:2], *x.shape[3:])


def _inner(table: Tensor, window: list[int]) -> Tensor:
    """The bias of the offsets that a smaller window has: a bias depends on its offset alone."""
    rows, cols = ((size + 1) // 2 - side for size, side in zip(table.shape[1:], window, strict=True))
    return table[:, rows:table.shape[1] - rows, cols:table.shape[2] - cols]


def _chunk(attn_chunk: int | None) -> int | str | None:
    return 'auto' if attn_chunk == 0 else attn_chunk


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    qkv, scale, table, *ctx.options = inputs
    ctx.save_for_backward(qkv, scale, table)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None


_attention.register_autograd(_gradients, setup_context=_save)
