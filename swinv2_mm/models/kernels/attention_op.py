"""Window attention on a whole feature map, by the C++ or by torch's operations.

A compiler calls it as one custom operation, for maps of any size. The plan of the windows consists of numbers: a
compiler that traced the plan would bake one image size into its graph. Inside an operation it sees neither the plan nor
the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from swinv2_mm.compat import custom_op
from swinv2_mm.models.kernels import choose, cpp_attention
from swinv2_mm.models.kernels.cosine_attention import Chunk, attention_backward, attention_forward
from swinv2_mm.models.kernels.linear import call, linear
from swinv2_mm.models.position_bias import window_of
from swinv2_mm.models.window import WindowLayout, cut, window_layout, window_partition, window_reverse

Pair = tuple[int, int]
# Without a backward pass, queries, keys and values are computed for as many heads at a time as take this much: memory
# above 32 MiB comes fresh from the system each time, and touching it first takes as long as the product itself.
FRESH_BYTES = 24 * 2**20


class Options(NamedTuple):
    """How to attend on a map of ``(Hp, Wp)`` tokens."""

    size: Pair  # (H, W), the part of the map to return, at most (Hp, Wp)
    shifted: bool  # by half a window along each axis that has more than one window
    attn_chunk: Chunk = None
    backend: str = 'auto'  # see choose.attention


def project_and_attend(
    x: Tensor, layer: nn.Module, bias: Tensor | None, scale: Tensor, table: Tensor, options: Options
) -> Tensor:
    """:func:`attention_on_map` of the queries, keys and values that a linear layer makes of ``x``, ``(B, Hp, Wp, C)``.

    Args:
        layer: From ``C`` to ``3 C`` channels.
        bias: ``(3 C,)``, added to the result of the layer; None for zero.
    """
    nH, d = len(scale), x.shape[3] // len(scale)
    if not choose.untouched_linear(layer) or layer.bias is not None:
        return attention_on_map(call(layer, x, bias).unflatten(-1, (3, nH, d)), None, scale, table, options)
    x = x.to(choose.compute_dtype(x))
    heads = nH * FRESH_BYTES // max(3 * x.numel() * x.element_size(), 1)
    if torch.is_grad_enabled() or heads >= nH or not _by_cpp(x, d, scale, table, options):
        return attention_on_map(call(layer, x).unflatten(-1, (3, nH, d)), bias, scale, table, options)
    out = x.new_empty(*x.shape[:3], nH, d)
    for some in cut(0, nH, max(heads, 1)):
        weight = layer.weight.view(3, nH, d, -1)[:, some].flatten(0, 2)  # (3 heads d, C)
        qkv = linear(x, weight).view(*x.shape[:3], 3, -1, d)
        some_bias = None if bias is None else bias.view(3, nH, d)[:, some].flatten()
        cpp_attention.forward(qkv, some_bias, scale[some], table[some], options.shifted, out[:, :, :, some])
    return out[:, : options.size[0], : options.size[1]]


def attention_on_map(qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, options: Options) -> Tensor:
    """:func:`~swinv2_mm.models.kernels.cosine_attention.cosine_attention` in the windows of a map.

    Args:
        qkv: Queries, keys and values of the tokens, ``(B, Hp, Wp, 3, nH, d)``; padding beyond the map is masked.
        bias: ``(3 nH d,)``, added to ``qkv``; None for zero.
        scale: ``(nH, 1, 1)``.
        table: ``(nH, 2 Wh - 1, 2 Ww - 1)``, the bias of each offset in the window ``(Wh, Ww)``, at most ``(Hp, Wp)``.

    Returns:
        ``(B, H, W, nH, d)``.
    """
    return _OnMap.apply(qkv, bias, scale, table, options)


class _OnMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, options: Options) -> Tensor:
        ctx.save_for_backward(qkv, bias, scale, table)
        ctx.options = options
        return _forward(qkv, bias, scale, table, options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *_backward(grad, *ctx.saved_tensors, options=ctx.options), None


def _by_cpp(x: Tensor, head_width: int, scale: Tensor, table: Tensor, options: Options) -> bool:
    return choose.attention_by_cpp(options.backend, x, head_width, window_of(table), scale.dtype, table.dtype)


def _forward(qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, options: Options) -> Tensor:
    if _by_cpp(qkv, qkv.shape[5], scale, table, options):
        out = cpp_attention.forward(qkv, bias, scale, table, options.shifted)
    else:
        layout, slots = _to_windows(qkv, bias, table, options)
        out = attention_forward(slots, scale, table, layout.groups, options.attn_chunk)
        out = window_reverse(out.flatten(2), layout, qkv.shape[1:3]).unflatten(3, qkv.shape[4:])
    return out[:, : options.size[0], : options.size[1]].contiguous()


def _backward(
    grad: Tensor, qkv: Tensor, bias: Tensor | None, scale: Tensor, table: Tensor, options: Options
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The gradients of ``qkv``, ``bias``, ``scale`` and ``table``."""
    Hp, Wp = qkv.shape[1:3]
    H, W = options.size
    grad = F.pad(grad, (0, 0, 0, 0, 0, Wp - W, 0, Hp - H)) if (Hp, Wp) != (H, W) else grad
    if _by_cpp(qkv, qkv.shape[5], scale, table, options):
        return cpp_attention.backward(grad, qkv, bias, scale, table, options.shifted)
    layout, slots = _to_windows(qkv, bias, table, options)
    _, grad = _to_windows(grad, None, table, options)
    grad.flatten(0, 1).index_fill_(0, layout.pads, 0)  # the result of padding is never read
    slots_grad, scale_grad, table_grad = attention_backward(
        grad, slots, scale, table, layout.groups, options.attn_chunk
    )
    qkv_grad = window_reverse(slots_grad.flatten(2), layout, (Hp, Wp)).view_as(qkv)
    bias_grad = None if bias is None else qkv_grad.sum((0, 1, 2)).flatten().to(bias.dtype)
    return qkv_grad, bias_grad, scale_grad, table_grad


def _to_windows(x: Tensor, bias: Tensor | None, table: Tensor, options: Options) -> tuple[WindowLayout, Tensor]:
    """The plan for a map ``(B, H, W, ...)``, and the slots, ``(B * nW, N, ...)``, of the map plus a bias."""
    if bias is not None:
        x = x + bias.to(x.dtype).view(x.shape[3:])
    B, H, W = x.shape[:3]
    layout = window_layout(B, H, W, window_of(table), options.shifted, x.device)
    slots = window_partition(x.flatten(3), layout)
    return layout, slots.view(*slots.shape[:2], *x.shape[3:])


# --- as a custom operation -------------------------------------------------------------------------------------------


def map_attention(qkv: Tensor, scale: Tensor, table: Tensor, window: Pair, options: Options) -> Tensor:
    """:func:`attention_on_map` as an operation for compilers, in maps of any size.

    Args:
        table: ``(nH, 2 Ph - 1, 2 Pw - 1)``, the bias of each offset in a window of ``(Ph, Pw)``, at least ``window``.
        window: ``(Wh, Ww)``, in tokens, at most ``(Hp, Wp)``.
    """
    size, shifted, attn_chunk, backend = options
    chunk = 0 if attn_chunk == 'auto' else attn_chunk  # operations take no union of types
    return _attention(qkv, scale, table, list(size), list(window), shifted, chunk, backend)


_TENSORS = 'Tensor qkv, Tensor scale, Tensor table'
_ARGUMENTS = f'{_TENSORS}, SymInt[] size, SymInt[] window, bool shifted, SymInt? attn_chunk, str backend'


@custom_op('swinv2_mm::map_attention', f'({_ARGUMENTS}) -> Tensor')
def _attention(
    qkv: Tensor,
    scale: Tensor,
    table: Tensor,
    size: list[int],
    window: list[int],
    shifted: bool,
    attn_chunk: int | None,
    backend: str,
) -> Tensor:
    return _forward(qkv, None, scale, inner_table(table, window), _options(size, shifted, attn_chunk, backend))


@_attention.register_fake
def _(qkv, scale, table, size, window, shifted, attn_chunk, backend):
    return qkv.new_empty(qkv.shape[0], *size, *qkv.shape[4:])


@custom_op('swinv2_mm::map_attention_backward', f'(Tensor grad, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)')
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    scale: Tensor,
    table: Tensor,
    size: list[int],
    window: list[int],
    shifted: bool,
    attn_chunk: int | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    options = _options(size, shifted, attn_chunk, backend)
    qkv_grad, _, scale_grad, inner_grad = _backward(grad, qkv, None, scale, inner_table(table, window), options)
    table_grad = torch.zeros_like(table)
    inner_table(table_grad, window).copy_(inner_grad)
    return qkv_grad, scale_grad, table_grad


@_attention_backward.register_fake
def _(grad, qkv, scale, table, *options):
    return qkv.new_empty(qkv.shape), torch.empty_like(scale), torch.empty_like(table)


def _options(size: list[int], shifted: bool, attn_chunk: int | None, backend: str) -> Options:
    return Options((size[0], size[1]), shifted, 'auto' if attn_chunk == 0 else attn_chunk, backend)


def inner_table(table: Tensor, window: Sequence[int]) -> Tensor:
    """The bias of the offsets in a smaller window: a bias depends on its offset alone."""
    rows, cols = (whole - side for whole, side in zip(window_of(table), window, strict=True))
    return table[:, rows : table.shape[1] - rows, cols : table.shape[2] - cols]


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    qkv, scale, table, *ctx.options = inputs
    ctx.save_for_backward(qkv, scale, table)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad, *ctx.saved_tensors, *ctx.options), None, None, None, None, None


_attention.register_autograd(_gradients, setup_context=_save)
