"""Window attention of SwinV2: cosine logits, a learned scale per head, a continuous position bias."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.cache import may_keep
from swinv2_mm.models.kernels import choose
from swinv2_mm.models.kernels.attention_op import Options, map_attention, project_and_attend
from swinv2_mm.models.kernels.cosine_attention import Chunk, cosine_attention
from swinv2_mm.models.kernels.gpu.triton_attention import fused_window_attention
from swinv2_mm.models.kernels.linear import call
from swinv2_mm.models.position_bias import log_spaced_coords
from swinv2_mm.models.window import shift_of, window_layout, window_partition, window_reverse

Pair = tuple[int, int]


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (paper, sections 3.2 and 3.3).

    Args:
        embed_dims: Channels ``C``.
        num_heads: Heads ``nH``, a divisor of ``C``.
        pretrained_window_size: ``(p_h, p_w)``, normaliser of the log-spaced coordinates.
        qkv_bias: Learn a bias for queries and values (keys need none: soft-max ignores it).
        attn_drop_rate: Dropout of the attention probabilities.
        drop_rate: Dropout of the output.
        attn_chunk, attn_backend: See :class:`~swinv2_mm.models.swin_v2.SwinTransformerV2`.
    """

    q_bias: nn.Parameter | None
    v_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        pretrained_window_size: Pair,
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
        attn_chunk: Chunk = None,
        attn_backend: str = 'auto',
    ) -> None:
        super().__init__()
        self.attn_chunk: Chunk = attn_chunk
        self.attn_backend = attn_backend
        self.num_heads = num_heads
        self.pretrained_window_size = pretrained_window_size
        self.attn_drop_rate = attn_drop_rate
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=False)
        for name in ('q_bias', 'v_bias'):
            self.register_parameter(name, nn.Parameter(torch.zeros(embed_dims)) if qkv_bias else None)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)
        self._kept_bias: tuple[tuple, list[Tensor], Tensor] | None = None  # its key, its weights, the bias

    def train(self, mode: bool = True) -> WindowAttention:
        """Switch the mode; training drops the bias that evaluation kept."""
        if mode:
            self._kept_bias = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_kept_bias': None}  # a copy computes its own

    def position_bias(self, window: Pair) -> Tensor:
        """The bias ``16 * sigmoid(mlp(coordinates))`` of every offset in a window, ``(nH, 2 Wh - 1, 2 Ww - 1)``.

        In eval it is kept on a CPU until a weight of the MLP changes, unless a layer of it was replaced. Values are
        compared, not version counters, which miss ``param.data.copy_`` (by which mmengine swaps EMA weights in). On a
        GPU that would wait for the device.
        """
        weights = list(self.cpb_mlp.parameters())
        needs_grad = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        keeps = choose.compares_values(self.logit_scale) and may_keep(self.logit_scale.device)
        if self.training or needs_grad or not keeps or self._own_layers() is None:
            return self._bias_table(window)
        key = window, self.pretrained_window_size
        if self._kept_bias is not None:
            kept_key, kept_weights, kept = self._kept_bias
            if kept_key == key and all(map(_same, kept_weights, weights)):
                return kept
        with torch.inference_mode(False), torch.no_grad():
            kept = self._bias_table(window)
            self._kept_bias = key, [w.detach().clone() for w in weights], kept
        return kept

    def _bias_table(self, window: Pair) -> Tensor:
        weight = next(self.cpb_mlp.parameters(), self.logit_scale)  # int8 layers have no parameters
        # In float32 at least: bfloat16 would round a bias of 16 by up to 0.06, and the table costs next to nothing.
        dtype = torch.promote_types(weight.dtype, torch.float32)
        coords = log_spaced_coords(window, self.pretrained_window_size, dtype, weight.device)
        own = self._own_layers()
        with choose.without_autocast(weight):
            if own is None:
                table = self.cpb_mlp(coords.to(weight.dtype)).to(dtype)
            else:
                hidden = F.linear(coords, own[0].weight.to(dtype), own[0].bias.to(dtype)).relu()
                table = F.linear(hidden, own[1].weight.to(dtype))
            table = 16 * torch.sigmoid(table)  # (2 Wh - 1, 2 Ww - 1, nH)
        return table.permute(2, 0, 1)

    def _own_layers(self) -> tuple[nn.Linear, nn.Linear] | None:
        """The linear layers of the position bias, if its MLP is the one that we built."""
        if not choose.untouched(self.cpb_mlp, nn.Sequential) or len(self.cpb_mlp) != 3:
            return None
        first, act, last = self.cpb_mlp
        if not choose.untouched_linear(first) or not choose.untouched_linear(last):
            return None
        whole = choose.untouched(act, nn.ReLU) and first.bias is not None and last.bias is None
        return (first, last) if whole else None

    def forward(self, x: Tensor, window: Pair, shifted: bool, size: Pair, largest: Pair) -> Tensor:
        """Attend inside the windows of a feature map.

        Args:
            x: ``(B, Hp, Wp, C)``; padding that completes the last windows is not part of it, and masked.
            window: ``(Wh, Ww)``, in tokens.
            shifted: Shift by half a window along each axis that has more than one window.
            size: ``(H, W)``, the part of the map to return.
            largest: The configured window, at least ``window``. An operation for maps of any size gets the position
                bias of this one, since that does not depend on the map.

        Returns:
            ``(B, H, W, C)``.
        """
        dropout = self.attn_drop_rate if self.training else 0.0
        way = choose.attention(self.attn_backend, x, window, x.shape[-1] // self.num_heads, dropout > 0)
        if way == 'uncompiled':
            return self._forward_uncompiled(x, window, shifted, size, largest)  # type: ignore[call-arg]
        if way == 'windows':
            return self._attend_in_windows(x, window, shifted, size, dropout)
        options = Options(size, shifted, self.attn_chunk, self.attn_backend)
        if way == 'map':
            scale, table = self._scale(), self.position_bias((int(window[0]), int(window[1])))
            out = project_and_attend(x, self.qkv, self._qkv_bias(), scale, table, options)
        elif way == 'operation':
            out = map_attention(self._qkv(x), self._scale(), self.position_bias(largest), window, options)
        else:
            shift = shift_of(x.shape[1:3], window, shifted)
            table, scale = self.position_bias(window), self._scale().flatten()
            out = fused_window_attention(self._qkv(x), table, scale, window, shift)[:, : size[0], : size[1]]
        return self._project(out.flatten(3))  # (B, H, W, C)

    def _attend_in_windows(self, x: Tensor, window: Pair, shifted: bool, size: Pair, dropout: float) -> Tensor:
        B, Hp, Wp = map(int, x.shape[:3])  # torch.jit.trace has tensors for sizes
        layout = window_layout(B, Hp, Wp, (int(window[0]), int(window[1])), shifted, x.device)
        x = x.to(choose.linear_dtype(self.qkv, x))  # before it is copied into windows
        qkv = self._qkv(window_partition(x, layout))  # (G, N, 3, nH, d)
        table = self.position_bias(layout.window)
        out = cosine_attention(qkv, self._scale(), table, layout.groups, self.attn_chunk, dropout)
        out = self._project(out.flatten(2))  # (G, N, C)
        return window_reverse(out, layout, (Hp, Wp))[:, : size[0], : size[1]]

    @torch.compiler.disable
    def _forward_uncompiled(self, *args: Any) -> Tensor:
        return self.forward(*args)

    def _qkv(self, x: Tensor) -> Tensor:
        """Queries, keys and values of tokens ``(..., C)``: ``(..., 3, nH, d)``."""
        qkv = call(self.qkv, x, self._qkv_bias())
        return qkv.view(*qkv.shape[:-1], 3, self.num_heads, qkv.shape[-1] // (3 * self.num_heads))

    def _qkv_bias(self) -> Tensor | None:
        if self.q_bias is None or self.v_bias is None:
            return None
        keys = (_kept_zeros if may_keep(self.v_bias.device) else _zeros)(
            len(self.v_bias), self.v_bias.dtype, self.v_bias.device
        )
        return torch.cat((self.q_bias, keys, self.v_bias))

    def _scale(self) -> Tensor:
        # The limit is computed here: torch.compile takes a global for a number that changes.
        scale = self.logit_scale.clamp(max=math.log(100))
        return scale.to(torch.promote_types(scale.dtype, torch.float32)).exp()  # (nH, 1, 1)

    def _project(self, x: Tensor) -> Tensor:
        return self.proj_drop(call(self.proj, x))


def _zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.zeros(size, dtype=dtype, device=device)


_kept_zeros = lru_cache(maxsize=16)(_zeros)


def _same(kept: Tensor, weight: Tensor) -> bool:
    return kept.device == weight.device and kept.dtype == weight.dtype and torch.equal(kept, weight)
