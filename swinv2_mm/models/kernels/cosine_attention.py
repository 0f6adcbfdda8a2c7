"""Cosine attention inside windows by torch's operations: only the logits of a few windows exist at a time.

On a CPU the fused kernels of torch give no gradient to the bias; what torch does instead keeps all logits. So
the backward pass is written here: it keeps only its inputs, and computes the probabilities of a few windows again. A
tracer gets the formula as it is written.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from swinv2_mm.models.kernels import choose
from swinv2_mm.models.kernels.choose import in_given_types, product_dtype
from swinv2_mm.models.kernels.gpu import efficient_attention, usable
from swinv2_mm.models.kernels.gpu.efficient_attention import MIN_NORM
from swinv2_mm.models.position_bias import spread_over_slots, sum_over_slots, window_of
from swinv2_mm.models.window import WindowGroup, cut

# The limit for the bias of the queries that are computed together: all of a window's, up to 16 heads of window 32.
BIAS_BYTES = 64 * 2**20
# The limit for the logits of the windows that are computed together with attn_chunk='auto'. A step has about four such
# tensors at its peak; beyond some tens of megabytes larger ones are no faster.
CHUNK_BYTES = 64 * 2**20
# The same on a CPU, where they should stay in the cache: measured with 1 MiB of second-level cache per core.
CACHE_BYTES = 2 * 2**20

# The windows that are computed together, see at_a_time.
Chunk = int | Literal['auto'] | None
# Masks of the windows that are computed together: ``(r, N)``, or ``(n, 1, r, N)`` with one of each.
Masks = Sequence[tuple[slice, Tensor]]


def unit_vectors(x: Tensor) -> Tensor:
    """Scale the last dimension to length 1; vectors shorter than ``MIN_NORM`` become zero, with zero gradient.

    Computed in float32 at least: ``F.normalize`` has eps 1e-12, which is 0 in float16, so that a zero token gives NaN
    forward, or a gradient of 0 * inf backward.
    """
    x = _exact(x)
    return x * _inverse_norm(x)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))  # at once: operations on mixed types are slow


def _inverse_norm(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (norm > MIN_NORM) / norm.clamp_min(MIN_NORM)


def cosine_attention(
    qkv: Tensor, scale: Tensor, bias: Tensor, groups: Sequence[WindowGroup], attn_chunk: Chunk, dropout: float = 0.0
) -> Tensor:
    """``softmax(scale * cos(q, k) + bias) v`` (paper, equation 2); without dropout not differentiable twice.

    Args:
        qkv: Queries, keys and values of each window's slots, ``(G, N, 3, nH, d)``.
        scale: ``(nH, 1, 1)``.
        bias: Per offset, ``(nH, 2 Wh - 1, 2 Ww - 1)`` with ``N = Wh * Ww``.
        groups: Which windows share which mask; they cover all ``G``, in order.
        attn_chunk: See :func:`at_a_time`.
        dropout: Probability in [0, 1) to drop a probability.

    Returns:
        ``(G, N, nH, d)``.
    """
    if choose.attention_as_written(qkv, dropout > 0):
        return _written_out(qkv, scale, bias, groups, attn_chunk, dropout)
    if usable.torch_kernel_computes(qkv):
        return efficient_attention.efficient_attention(qkv, scale, bias, groups, _windows(qkv, attn_chunk))
    return _CosineAttention.apply(qkv, scale, bias, groups, attn_chunk)


def _written_out(
    qkv: Tensor, scale: Tensor, bias: Tensor, groups: Sequence[WindowGroup], attn_chunk: Chunk, dropout: float
) -> Tensor:
    """:func:`cosine_attention` in operations that a tracer can record."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (G, nH, N, d)
    q = (unit_vectors(q) * scale).to(v.dtype)
    k = unit_vectors(k).to(v.dtype)
    bias = spread_over_slots(bias).to(v.dtype)
    chunk = None if attn_chunk is None else at_a_time(attn_chunk, *q.shape[1:3], on_cpu=False)[0]
    pieces = [(p, group.outside(p.start, p.stop)) for group in groups for p in cut(group.start, group.stop, chunk)]
    sizes = [piece.stop - piece.start for piece, _ in pieces]
    run = _attend if chunk is None else partial(checkpoint, _attend, use_reentrant=False)
    # Splitting instead of slicing: the gradient of a slice is as large as the tensor that it was cut from.
    parts = [
        run(*heads, bias=bias, outside=outside, dropout=dropout)
        for *heads, (_, outside) in zip(q.split(sizes), k.split(sizes), v.split(sizes), pieces, strict=True)
    ]
    return torch.cat(parts).transpose(1, 2)  # (G, N, nH, d)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, outside: Tensor | None, dropout: float) -> Tensor:
    """``softmax(q k^T + bias) v`` of ``(G, nH, N, d)``, with a bias ``(nH, N, N)`` and dropout of probabilities."""
    if outside is not None:
        bias = bias.masked_fill(outside, -math.inf)
    probs = (q @ k.transpose(-2, -1) + bias).softmax(dim=-1)
    return (F.dropout(probs, dropout) if dropout else probs) @ v


def at_a_time(attn_chunk: Chunk, num_heads: int, N: int, on_cpu: bool) -> tuple[int | None, int]:
    """The number of windows, and of their heads, to compute together; None for all windows.

    Args:
        attn_chunk: The most windows; ``'auto'``: those whose logits take :data:`CHUNK_BYTES`; None: all.
        num_heads: Heads.
        N: Slots of a window.
        on_cpu: Whether a CPU computes; there logits never take more than :data:`CACHE_BYTES`.
    """
    if attn_chunk != 'auto' and not on_cpu:
        return attn_chunk, num_heads
    matrices = max(1, (CACHE_BYTES if on_cpu else CHUNK_BYTES) // (4 * N * N))
    windows = max(1, matrices // num_heads)
    return windows if attn_chunk in ('auto', None) else min(windows, attn_chunk), min(matrices, num_heads)


def _windows(qkv: Tensor, attn_chunk: Chunk) -> int | None:
    """:func:`at_a_time`'s number of windows ``(G, N, 3, nH, d)`` on a GPU."""
    return at_a_time(attn_chunk, qkv.shape[3], qkv.shape[1], on_cpu=False)[0]


class _CosineAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup], attn_chunk):
        ctx.save_for_backward(qkv, scale, table)
        ctx.groups, ctx.attn_chunk = groups, attn_chunk
        return attention_forward(qkv, scale, table, groups, attn_chunk)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return *attention_backward(grad, *ctx.saved_tensors, groups=ctx.groups, chunk=ctx.attn_chunk), None, None


@in_given_types
def attention_forward(qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup], chunk: Chunk) -> Tensor:
    """:func:`cosine_attention`, without autograd."""
    if usable.torch_kernel_computes(qkv):
        return efficient_attention.forward(qkv, scale, table, groups, _windows(qkv, chunk))[0]
    G, N, _, nH, d = qkv.shape
    out = qkv.new_empty(G, N, nH, d)
    in_cache = choose.logits_in_cache(qkv)
    # The fused kernel takes one mask for all windows.
    together = [groups] if in_cache else [[group] for group in groups]
    for first, last in _queries_at_a_time(table):
        rows, count = spread_over_slots(table, first, last), at_a_time(chunk, nH, N, in_cache)
        pieces = itertools.chain.from_iterable(_pieces(some, count, rows, first) for some in together)
        for windows, heads, bias, masks in pieces:
            q, k, v = _by_heads(qkv[windows, :, :, heads])
            v = v.to(product_dtype(v))
            q = unit_vectors(q[:, :, first:last]).mul_(scale[heads]).to(v.dtype)
            k = unit_vectors(k).to(v.dtype)
            if in_cache:  # faster than the fused kernel while the logits stay in the cache
                o = _probabilities(q, k, bias, masks).to(v.dtype) @ v
            else:
                for _, outside in masks:
                    bias = bias.masked_fill(outside, -math.inf)
                bias = bias.to(v.dtype).expand(len(q), *bias.shape[-3:])
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
            out[windows, first:last, heads] = o.transpose(1, 2)
    return out


@in_given_types
def attention_backward(
    grad: Tensor, qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup], chunk: Chunk
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``qkv``, ``scale`` and ``table`` from that of :func:`attention_forward`'s result."""
    if usable.torch_kernel_computes(qkv):
        windows = _windows(qkv, chunk)
        kept = efficient_attention.forward(qkv, scale, table, groups, windows, differentiable=True)
        return efficient_attention.backward(grad, scale, table, *kept, groups=groups, windows=windows)
    G, N, _, nH, d = qkv.shape
    exact = torch.promote_types(qkv.dtype, torch.float32)
    qkv_grad = torch.empty_like(qkv)
    scale_grad = torch.zeros_like(scale, dtype=exact)
    table_grad = torch.zeros_like(table)
    parts = list(_queries_at_a_time(table))
    # Of the gradients of keys and values over the parts, if there are several.
    sums = torch.zeros(2, G, nH, N, d, dtype=exact, device=qkv.device) if len(parts) > 1 else None
    for first, last in parts:
        rows = spread_over_slots(table, first, last)
        rows_grad = torch.zeros_like(rows)
        pieces = _pieces(groups, at_a_time(chunk, nH, N, choose.logits_in_cache(qkv)), rows, first)
        for windows, heads, bias, masks in pieces:
            q, k, v = _by_heads(qkv[windows, :, :, heads])
            v = v.to(product_dtype(v))
            o_grad = grad[windows, first:last, heads].transpose(1, 2).to(v.dtype).contiguous()  # (n, nH, r, d)
            q, k = _exact(q[:, :, first:last]), _exact(k)
            q_by, k_by = _inverse_norm(q), _inverse_norm(k)  # (n, nH, r or N, 1)
            scaled_q, unit_k = (q * (q_by * scale[heads])).to(v.dtype), (k * k_by).to(v.dtype)
            probs = _probabilities(scaled_q, unit_k, bias, masks)
            logits_grad = (o_grad @ v.transpose(-2, -1)).to(exact)
            logits_grad = torch._softmax_backward_data(logits_grad, probs, -1, exact)
            rows_grad[heads] += logits_grad.sum(0)
            probs, logits_grad = probs.to(v.dtype), logits_grad.to(v.dtype)
            v_grad = probs.transpose(-2, -1) @ o_grad
            k_grad = (logits_grad.transpose(-2, -1) @ scaled_q).to(exact)
            q_grad, along = _across(q, q_by, (logits_grad @ unit_k).to(exact))
            scale_grad[heads] += along.sum((0, 2))[..., None]
            q_grad *= q_by * scale[heads]
            qkv_grad[windows, first:last, 0, heads] = q_grad.to(qkv.dtype).transpose(1, 2)
            if sums is None:
                k_grad = _across(k, k_by, k_grad)[0].mul_(k_by)
                qkv_grad[windows, :, 1, heads] = k_grad.to(qkv.dtype).transpose(1, 2)
                qkv_grad[windows, :, 2, heads] = v_grad.transpose(1, 2)
            else:
                sums[0, windows, heads] += k_grad
                sums[1, windows, heads] += v_grad
        table_grad += sum_over_slots(rows_grad, table, first, last)
    if sums is not None:
        k = _exact(qkv[:, :, 1].transpose(1, 2))  # (G, nH, N, d)
        k_by = _inverse_norm(k)
        qkv_grad[:, :, 1] = _across(k, k_by, sums[0])[0].mul_(k_by).transpose(1, 2)
        qkv_grad[:, :, 2] = sums[1].transpose(1, 2)
    return qkv_grad, scale_grad.to(scale.dtype), table_grad


def _by_heads(qkv: Tensor) -> tuple[Tensor, ...]:
    """``(n, N, 3, nH, d)`` to three times ``(n, nH, N, d)``."""
    return qkv.permute(2, 0, 3, 1, 4).contiguous().unbind(0)


def _probabilities(q: Tensor, k: Tensor, bias: Tensor, masks: Masks) -> Tensor:
    """``softmax(q k^T + bias)``, ``(n, nH, r, N)``, in the bias' type: float32 at least."""
    logits = (q @ k.transpose(-2, -1)).to(bias.dtype)
    logits += bias
    for windows, outside in masks:
        logits[windows].masked_fill_(outside, -math.inf)
    return torch.softmax(logits, dim=-1, out=logits)


def _across(x: Tensor, by: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """The part of ``grad`` across the vectors ``x``, in place, and its length along their directions ``x * by``."""
    along = (x * grad).sum(-1, keepdim=True).mul_(by)
    return grad.addcmul_(x, along * by, value=-1), along


def _queries_at_a_time(table: Tensor) -> Iterator[tuple[int, int]]:
    """Cut the queries of a window into parts whose bias takes at most :data:`BIAS_BYTES`, by whole rows of slots."""
    Wh, Ww = window_of(table)
    one = len(table) * Ww * Wh * Ww * table.element_size()
    count = min(Wh, -(-Wh * one // BIAS_BYTES))
    for i in range(count):
        yield Wh * i // count * Ww, Wh * (i + 1) // count * Ww


def _pieces(
    groups: Sequence[WindowGroup], at_a_time: tuple[int | None, int], rows: Tensor, first: int
) -> Iterator[tuple[slice, slice, Tensor, Masks]]:
    """Windows and heads to compute together, with the bias of their queries, ``(heads, r, N)``, and their masks."""
    windows, heads = at_a_time
    for piece in cut(groups[0].start, groups[-1].stop, windows):
        masks = []
        for group in groups:
            start, stop = max(group.start, piece.start), min(group.stop, piece.stop)
            outside = group.outside(start, stop, first, first + rows.shape[1]) if start < stop else None
            if outside is not None:
                masks.append((slice(start - piece.start, stop - piece.start), outside))
        for which in cut(0, len(rows), heads):
            yield piece, which, rows[which], masks
