"""Continuous position bias: log-spaced coordinates, and the step from a bias per offset to a bias per pair of slots."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.models.cache import may_keep

Pair = tuple[int, int]


def log_spaced_coords(window: Pair, pretrained: Pair, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Coordinates of all offsets inside a window, log-spaced (paper, equation 4, in Microsoft's normalisation).

    An offset ``o`` becomes ``sign(o) * log2(1 + |8 * o / (p - 1)|) / log2(8)``. The normaliser ``p`` belongs to the
    weights: it is the window of their first pre-training, and does not change with the window in use.

    Args:
        window: ``(Wh, Ww)`` in use, in tokens.
        pretrained: ``p`` per axis, in tokens.

    Returns:
        ``(2 * Wh - 1, 2 * Ww - 1, 2)``; entry ``[i, j]`` belongs to the offset ``(i - Wh + 1, j - Ww + 1)``.
    """
    return (_kept_coords if may_keep(device) else _coords)(window, pretrained, dtype, device)


def _coords(window: Pair, pretrained: Pair, dtype: torch.dtype, device: torch.device) -> Tensor:
    exact = 'cpu' if device.type == 'mps' else device  # MPS has no float64

    def axis(size: int, p: int) -> Tensor:
        offsets = torch.arange(-(size - 1), size, dtype=torch.float64, device=exact) * 8 / max(p - 1, 1)
        return offsets.sign() * torch.log2(1 + offsets.abs()) / math.log2(8)

    with torch.inference_mode(False):
        coords = torch.meshgrid(axis(window[0], pretrained[0]), axis(window[1], pretrained[1]), indexing='ij')
        return torch.stack(coords, dim=-1).to(device=device, dtype=dtype)


_kept_coords = lru_cache(maxsize=64)(_coords)  # one per stage, window and pretrained window in use


def window_of(table: Tensor) -> Pair:
    """The window ``(Wh, Ww)`` of a bias per offset, ``(nH, 2 * Wh - 1, 2 * Ww - 1)``."""
    return (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2


def offset_index(window: Pair, device: torch.device) -> Tensor:
    """Where each pair of slots finds its offset in a flat table, ``(N, N)`` int64 with ``N = Wh * Ww``.

    For GPUs: one gather is one kernel, :func:`spread_over_slots` are three.
    """
    return (_kept_offset_index if may_keep(device) else _offset_index)(window, device)


def _offset_index(window: Pair, device: torch.device) -> Tensor:
    Wh, Ww = window
    with torch.inference_mode(False):
        i, j = torch.arange(Wh, device=device), torch.arange(Ww, device=device)
        place = (i[:, None] * (2 * Ww - 1) + j).flatten()  # (N,)
        return place[:, None] - place + (Wh - 1) * (2 * Ww - 1) + Ww - 1


_kept_offset_index = lru_cache(maxsize=16)(_offset_index)  # 3 MB for a window of 24


def spread_over_slots(table: Tensor, first: int = 0, last: int | None = None) -> Tensor:
    """Turn a bias per offset into a bias per pair of slots.

    Entry ``[h, q, k]`` of the result is the table's for the offset ``position(q) - position(k)``. It is made of
    overlapping views: an index table would cost a scatter-add in the backward pass.

    Args:
        table: ``(nH, 2 * Wh - 1, 2 * Ww - 1)``, ordered as :func:`log_spaced_coords`.
        first, last: The range of queries, whole rows of slots: both are multiples of ``Ww``.

    Returns:
        ``(nH, last - first, N)`` with ``N = Wh * Ww``.
    """
    Wh, Ww = window_of(table)
    top, bottom = first // Ww, Wh if last is None else last // Ww
    x = table[:, top : bottom + Wh - 1].flip(1, 2)
    x = x.unfold(1, Wh, 1).unfold(2, Ww, 1)  # (nH, bottom - top, Ww, Wh, Ww): queries from last to first, then keys
    x = x.flip(1, 2)
    return x.reshape(len(table), (bottom - top) * Ww, Wh * Ww)


def sum_over_slots(grad: Tensor, table: Tensor, first: int, last: int) -> Tensor:
    """The gradient of the table from that of the result of :func:`spread_over_slots`, with the same arguments."""
    nH, _, cols = table.shape
    Wh, Ww = window_of(table)
    top, bottom = first // Ww, last // Ww
    x = grad.reshape(nH, bottom - top, Ww, Wh, Ww).flip(1, 2)
    x = torch.ops.aten.unfold_backward(x, (nH, bottom - top, cols, Wh), 2, Ww, 1)
    x = torch.ops.aten.unfold_backward(x, (nH, bottom - top + Wh - 1, cols), 1, Wh, 1)
    return F.pad(x.flip(1, 2), (0, 0, top, Wh - bottom))
