"""Window attention of SwinV2: cosine logits, a learned scale per head, a continuous position bias."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_mm.models.kernels import cpp_attention
from swinv2_mm.models.kernels.attention_op import attention_on_map, map_attention
from swinv2_mm.models.kernels.cosine_attention import at_a_time, cosine_attention, cut, unit_vectors
from swinv2_mm.models.kernels.linear import call, compute_dtype, linear, untouched, untouched_linear
from swinv2_mm.models.kernels.triton_attention import fused_window_attention
from swinv2_mm.models.position_bias import log_spaced_coords, spread_over_slots
from swinv2_mm.models.recording import is_ordinary, is_recorded, is_traced
from swinv2_mm.models.window import (
    WindowGroup,
    is_symbolic,
    shift_of,
    window_layout,
    window_partition,
    window_reverse,
)

# Queries, keys and values that no backward pass needs are computed of as many heads as take so much: memory above 32
# MiB comes fresh from the system each time, and touching it first takes as long as the product itself.
FRESH_BYTES = 24 * 2**20


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """``softmax(q k^T + bias) v`` as it is written, with dropout on the probabilities.

    Args:
        q, k, v: ``(G, nH, N, d)``.
        bias: ``(nH, N, N)``.
        mask: ``(N, N)``, True where the row's slot may attend to the column's; None where all may.
        dropout: Probability in [0, 1).

    Returns:
        ``(G, nH, N, d)``.
    """
    if mask is not None:
        bias = bias.masked_fill(~mask, -math.inf)
    probs = (q @ k.transpose(-2, -1) + bias).softmax(dim=-1)
    return (F.dropout(probs, dropout) if dropout else probs) @ v


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (paper, sections 3.2 and 3.3).

    Args:
        embed_dims: Channels ``C``.
        num_heads: Heads ``nH``, a divisor of ``C``.
        pretrained_window_size: ``(p_h, p_w)``, normaliser of the log-spaced coordinates.
        qkv_bias: Learn a bias for queries and values (keys need none: soft-max ignores it).
        attn_drop_rate: Dropout of the attention probabilities.
        drop_rate: Dropout of the output.
        attn_chunk: Windows computed at a time (sequential self-attention; paper, section 3.4), see
            :func:`at_a_time`. In training the logits of a chunk are computed again in the backward pass, so
            that no more than one chunk's are ever in memory.
        attn_backend: ``'triton'`` for the fused kernels on a GPU; ``'sdpa'`` for torch's own; ``'auto'``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        pretrained_window_size: tuple[int, int],
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_chunk: int | str | None = None,
        attn_backend: str = 'auto',
    ) -> None:
        super().__init__()
        self.attn_chunk = attn_chunk
        # 'auto' is to take Triton only where that was measured to be faster and exact, which is nowhere so far.
        self.fused = attn_backend == 'triton'
        self.num_heads = num_heads
        self.pretrained_window_size = pretrained_window_size
        self.attn_drop_rate = attn_drop_rate
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=False)
        if qkv_bias:
            self.q_bias = nn.Parameter(torch.zeros(embed_dims))
            self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        else:
            self.register_parameter('q_bias', None)
            self.register_parameter('v_bias', None)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)
        self._kept_bias: tuple[tuple, list[Tensor], Tensor] | None = None  # for what, made of what, and the bias

    def train(self, mode: bool = True) -> WindowAttention:
        """Switch the mode; training lets go of what evaluation kept."""
        if mode:
            self._kept_bias = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_kept_bias': None}  # copies and pickles make their own

    @property
    def dropout(self) -> float:
        """Of the probabilities, in the mode at hand."""
        return self.attn_drop_rate if self.training else 0.0

    def position_bias(self, window: tuple[int, int]) -> Tensor:
        """The bias ``16 * sigmoid(mlp(coordinates))`` of every offset in a window, ``(nH, 2 Wh - 1, 2 Ww - 1)``.

        In eval it is kept until a weight of the MLP changes. Values are compared rather than version counters:
        ``param.data.copy_`` (that is how mmengine swaps EMA weights in) does not count as a new version. It is neither
        kept nor used where somebody records what is done, or has put something else in the place of the MLP's layers.
        """
        weights = list(self.cpb_mlp.parameters())
        needs_grad = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        if self.training or needs_grad or is_recorded() or not self._has_own_mlp():
            return self._bias_table(window)
        if self._kept_bias is not None:
            kept_window, kept_weights, kept = self._kept_bias
            if kept_window == (window, self.pretrained_window_size) and all(map(_same, kept_weights, weights)):
                return kept
        with torch.inference_mode(False), torch.no_grad():
            kept = self._bias_table(window)
            self._kept_bias = ((window, self.pretrained_window_size), [w.detach().clone() for w in weights], kept)
        return kept

    def _bias_table(self, window: tuple[int, int]) -> Tensor:
        weight = next(self.cpb_mlp.parameters(), self.logit_scale)  # int8 layers have no parameters
        # In float32 at least: bfloat16 would round a bias of 16 by up to 0.06, for a table that costs next to nothing.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        coords = log_spaced_coords(window, self.pretrained_window_size, dtype, weight.device)
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            if self._has_own_mlp():
                first, _, last = self.cpb_mlp
                hidden = F.linear(coords, first.weight.to(dtype), first.bias.to(dtype)).relu()
                table = F.linear(hidden, last.weight.to(dtype))
            else:
                table = self.cpb_mlp(coords.to(weight.dtype)).to(dtype)
            table = 16 * torch.sigmoid(table)  # (2 Wh - 1, 2 Ww - 1, nH)
        return table.permute(2, 0, 1)

    def _has_own_mlp(self) -> bool:
        """Whether the MLP of the position bias is what was built."""
        if not untouched(self.cpb_mlp, nn.Sequential) or len(self.cpb_mlp) != 3:
            return False
        first, act, last = self.cpb_mlp
        return (
            untouched_linear(first)
            and untouched(act, nn.ReLU)
            and untouched_linear(last)
            and first.bias is not None
            and last.bias is None
        )

    def forward(
        self, x: Tensor, window: tuple[int, int], shifted: bool, size: tuple[int, int], largest: tuple[int, int]
    ) -> Tensor:
        """Attend inside the windows of a feature map.

        Args:
            x: ``(B, Hp, Wp, C)``; padding that completes the last windows is not part of it, and masked.
            window: ``(Wh, Ww)``, in tokens, at most ``(Hp, Wp)`` if no padding beyond the last window is wanted.
            shifted: Shift by half a window along each axis that has more than one window.
            size: ``(H, W)``, the part of the map that is wanted.
            largest: The configured window, at least ``window``: where a compiler means maps of any size, the position
                bias is made for this one, since that may not depend on the map.

        Returns:
            ``(B, H, W, C)``.
        """
        if torch.compiler.is_dynamo_compiling() and self.dropout:  # the one operation has none
            return self._forward_uncompiled(x, window, shifted, size, largest)
        H, W = size
        if self.fused:
            shift = shift_of(x.shape[1:3], window, shifted)
            out = fused_window_attention(
                self._qkv(x), self.position_bias(window), self._scale().flatten(), window, shift
            )
            return self._project(out[:, :H, :W])
        if is_symbolic(*x.shape[:3]):
            out = map_attention(
                self._qkv(x), self._scale(), self.position_bias(largest), size, window, shifted, self.attn_chunk
            )
            return self._project(out.flatten(3))  # (B, H, W, C)
        B, Hp, Wp = map(int, x.shape[:3])  # torch.jit.trace has tensors for sizes
        window = int(window[0]), int(window[1])
        if not self.dropout and cpp_attention.may_take(x, x.shape[-1] // self.num_heads, window[0] * window[1]):
            return self._project(self._attend_on_map(x, window, shifted, size).flatten(3))  # (B, H, W, C)
        layout = window_layout(B, Hp, Wp, window, shifted, x.device)
        qkv = self._qkv(window_partition(x, layout))  # (G, N, 3, nH, d)
        scale, bias = self._scale(), self.position_bias(layout.window)
        if self.dropout or is_traced() or not is_ordinary(qkv):
            out = _written_out(qkv, scale, bias, layout.groups, self.attn_chunk, self.dropout)
        else:
            out = cosine_attention(qkv, scale, bias, layout.groups, self.attn_chunk)
        out = self._project(out.flatten(2))  # (G, N, C)
        return window_reverse(out, layout, (Hp, Wp))[:, :H, :W]

    def _attend_on_map(self, x: Tensor, window: tuple[int, int], shifted: bool, size: tuple[int, int]) -> Tensor:
        """Attention, ``(B, H, W, nH, d)``, without a copy of the map in windows."""
        scale, table = self._scale(), self.position_bias(window)
        if not untouched_linear(self.qkv) or self.qkv.bias is not None:
            return attention_on_map(self._qkv(x), None, scale, table, size, shifted, self.attn_chunk)
        bias, x = self._qkv_bias(), x.to(compute_dtype(x))
        heads = self.num_heads * FRESH_BYTES // max(3 * x.numel() * x.element_size(), 1)
        if torch.is_grad_enabled() or heads >= self.num_heads or scale.dtype != torch.float32:
            qkv = self._split(call(self.qkv, x))
            return attention_on_map(qkv, bias, scale, table, size, shifted, self.attn_chunk)
        out = x.new_empty(*x.shape[:3], self.num_heads, x.shape[3] // self.num_heads)
        for some in cut(0, self.num_heads, max(heads, 1)):
            weight = self.qkv.weight.view(3, *out.shape[3:], -1)[:, some].flatten(0, 2)  # (3 heads d, C)
            qkv = linear(x, weight).view(*x.shape[:3], 3, -1, out.shape[4])
            some_bias = None if bias is None else self._split(bias)[:, some].flatten()
            cpp_attention.forward(qkv, some_bias, scale[some], table[some], shifted, out[:, :, :, some])
        return out[:, : size[0], : size[1]]

    @torch.compiler.disable
    def _forward_uncompiled(self, *args: Any) -> Tensor:
        return self.forward(*args)

    def _qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values of tokens ``(..., C)``: ``(..., 3, nH, d)``."""
        return self._split(call(self.qkv, x, self._qkv_bias()))

    def _qkv_bias(self) -> Tensor | None:
        return None if self.q_bias is None else torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))

    def _split(self, qkv: Tensor) -> Tensor:
        return qkv.view(*qkv.shape[:-1], 3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))

    def _scale(self) -> Tensor:
        # A Python number: a tensor would have to follow the module to its device. Here, since torch.compile takes a
        # global for a number that changes.
        scale = self.logit_scale.clamp(max=math.log(100))
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).exp()  # (nH, 1, 1)

    def _project(self, x: Tensor) -> Tensor:
        return self.proj_drop(call(self.proj, x))


def _written_out(
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    groups: tuple[WindowGroup, ...],
    attn_chunk: int | str | None,
    dropout: float,
) -> Tensor:
    """As :func:`cosine_attention`, in operations that a compiler can fuse, and with dropout."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (G, nH, N, d)
    q = (unit_vectors(q) * scale).to(v.dtype)
    k = unit_vectors(k).to(v.dtype)
    bias = spread_over_slots(bias).to(v.dtype)
    chunk = None if attn_chunk is None else at_a_time(attn_chunk, *q.shape[1:3], on_cpu=False)[0]
    pieces = [
        (piece.stop - piece.start, group.mask()) for group in groups for piece in cut(group.start, group.stop, chunk)
    ]
    sizes = [size for size, _ in pieces]
    parts = []
    # Splitting instead of slicing: the gradient of a slice is as large as what it was cut from.
    for q_, k_, v_, (_, mask) in zip(q.split(sizes), k.split(sizes), v.split(sizes), pieces, strict=True):
        if chunk is None:
            parts.append(attend(q_, k_, v_, bias, mask, dropout))
        else:
            parts.append(checkpoint(attend, q_, k_, v_, bias, mask, dropout, use_reentrant=False))
    return torch.cat(parts).transpose(1, 2)  # (G, N, nH, d)


def _same(kept: Tensor, weight: Tensor) -> bool:
    return kept.device == weight.device and kept.dtype == weight.dtype and torch.equal(kept, weight)
