"""Window attention of SwinV2: cosine logits, a learned scale per head, a continuous position bias."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.cpb import log_spaced_coords, spread_over_slots
from swinv2_mm.models.window import WindowGroup

# A Python number: a tensor would have to follow the module to its device.
MAX_LOGIT_SCALE = math.log(100)
# Below this length a vector has no direction that its rounding errors would leave standing.
MIN_NORM = 1e-6


def unit_vectors(x: Tensor) -> Tensor:
    """Scale the last dimension to length 1; vectors shorter than ``MIN_NORM`` become zero, with zero gradient.

    Computed in float32 at least: ``F.normalize`` has eps 1e-12, which is 0 in float16, so that an all-zero token
    gives NaN forward, or a gradient of 0 * inf backward.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return x * ((norm > MIN_NORM) / norm.clamp_min(MIN_NORM))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """``softmax(q k^T + bias) v``, with dropout on the probabilities.

    The fused kernels cannot give a gradient to the bias, and torch's fallback for that case makes several passes more
    than the formula needs; so a bias that is being trained takes the formula.

    Args:
        q, k, v: ``(G, nH, N, d)``.
        bias: ``(nH, N, N)``; -inf where a pair is masked.
        dropout: Probability in [0, 1).

    Returns:
        ``(G, nH, N, d)``.
    """
    if not (bias.requires_grad and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], dropout_p=dropout, scale=1.0)
    logits = q @ k.transpose(-2, -1)            # (G, nH, N, N)
    logits += bias
    probs = F.dropout(logits.softmax(dim=-1), dropout)
    return probs @ v


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows (paper, sections 3.2 and 3.3).

    Args:
        embed_dims: Channels ``C``.
        num_heads: Heads ``nH``, a divisor of ``C``.
        pretrained_window_size: ``(p_h, p_w)``, normaliser of the log-spaced coordinates.
        qkv_bias: Learn a bias for queries and values (keys need none: soft-max ignores it).
        attn_drop_rate: Dropout of the attention probabilities.
        drop_rate: Dropout of the output.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        pretrained_window_size: tuple[int, int],
        qkv_bias: bool = True,
        attn_drop_rate: float = 0.0,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.pretrained_window_size = pretrained_window_size
        self.attn_drop_rate = attn_drop_rate
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, num_heads, bias=False))
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims, bias=False)
        if qkv_bias:
            self.q_bias = nn.Parameter(torch.zeros(embed_dims))
            self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        else:
            self.register_parameter('q_bias', None)
            self.register_parameter('v_bias', None)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.proj_drop = nn.Dropout(drop_rate)
        self._kept_bias: tuple[tuple[int, int], list[Tensor], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_kept_bias': None}  # copies and pickles make their own

    def position_bias(self, window: tuple[int, int]) -> Tensor:
        """The bias ``16 * sigmoid(mlp(coordinates))`` of a window of ``(Wh, Ww)``, ``(nH, N, N)``.

        In eval it is kept until a weight of the MLP changes. Values are compared rather than version counters, since
        ``param.data.copy_`` (that is how mmengine swaps EMA weights in) does not count as a new version.
        """
        weights = list(self.cpb_mlp.parameters())
        needs_grad = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
        if self.training or needs_grad or torch.compiler.is_compiling():
            return self._compute_bias(window)
        if self._kept_bias is not None:
            kept_window, kept_weights, bias = self._kept_bias
            if kept_window == window and all(map(_same, kept_weights, weights)):
                return bias
        with torch.inference_mode(False), torch.no_grad():
            bias = self._compute_bias(window)
            self._kept_bias = (window, [w.detach().clone() for w in weights], bias)
        return bias

    def _compute_bias(self, window: tuple[int, int]) -> Tensor:
        weight = self.cpb_mlp[0].weight
        coords = log_spaced_coords(window, self.pretrained_window_size, weight.dtype, weight.device)
        # Without autocast: bfloat16 would round a bias of 16 by up to 0.06, for a table that costs next to nothing.
        with torch.autocast(weight.device.type, enabled=False):
            table = 16 * torch.sigmoid(self.cpb_mlp(coords))         # (2 Wh - 1, 2 Ww - 1, nH)
        return spread_over_slots(table.permute(2, 0, 1))

    def forward(self, x: Tensor, window: tuple[int, int], groups: tuple[WindowGroup, ...]) -> Tensor:
        """Attend inside each window.

        Args:
            x: Windows, ``(B * nW, N, C)``.
            window: ``(Wh, Ww)`` with ``N = Wh * Ww``.
            groups: Which windows share which mask, see :class:`WindowGroup`.

        Returns:
            ``(B * nW, N, C)``.
        """
        G, N, C = x.shape
        qkv_bias = None
        if self.q_bias is not None:
            qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        qkv = qkv.view(G, N, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)               # 3 x (G, nH, N, d)
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        q = (unit_vectors(q) * scale).to(v.dtype)
        k = unit_vectors(k).to(v.dtype)

        bias = self.position_bias(window).to(v.dtype)
        dropout = self.attn_drop_rate if self.training else 0.0
        parts = []
        for group in groups:
            part = slice(group.start, group.stop)
            masked = bias if group.mask is None else bias.masked_fill(~group.mask, -math.inf)
            parts.append(attend(q[part], k[part], v[part], masked, dropout))
        x = parts[0] if len(parts) == 1 else torch.cat(parts)        # (G, nH, N, d)
        x = x.transpose(1, 2).reshape(G, N, C)
        return self.proj_drop(self.proj(x))


def _same(kept: Tensor, weight: Tensor) -> bool:
    return kept.device == weight.device and kept.dtype == weight.dtype and torch.equal(kept, weight)
