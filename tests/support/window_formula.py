"""The paper's window attention as one formula for all windows, to compare the kernels with."""

import math

import torch

from swinv2_mm.models.position_bias import spread_over_slots
from swinv2_mm.models.window import window_layout, window_partition, window_reverse

CPU = torch.device('cpu')


def formula(qkv, scale, table, groups):
    """All windows at once, as it is written in the paper."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    cosine = torch.einsum('ghqd,ghkd->ghqk', q, k) / q.norm(dim=-1)[..., None] / k.norm(dim=-1)[..., None, :]
    logits = scale * cosine + spread_over_slots(table)
    for group in groups:
        outside = group.outside(group.start, group.stop)
        if outside is not None:
            logits = torch.cat(
                (
                    logits[: group.start],
                    logits[group.start : group.stop].masked_fill(outside, -math.inf),
                    logits[group.stop :],
                )
            )
    return torch.einsum('ghqk,ghkd->gqhd', logits.softmax(-1), v)


def problem(dtype=torch.float64, B=1, size=(5, 7), window=(2, 3), nH=2, d=32, seed=0):
    """Queries, keys and values of a map, a bias of them, scales, and a bias per offset."""
    torch.manual_seed(seed)
    qkv = torch.randn(B, *size, 3, nH, d, dtype=dtype)
    scale = torch.rand(nH, 1, 1, dtype=dtype) * 5
    table = torch.randn(nH, 2 * window[0] - 1, 2 * window[1] - 1, dtype=dtype)
    return [qkv, torch.randn(3 * nH * d, dtype=dtype), scale, table]


def on_windows(qkv, bias, scale, table, shifted):
    """The paper's formula on the windows that :mod:`window` plans."""
    qkv = qkv + bias.view(qkv.shape[3:])
    window = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
    layout = window_layout(*qkv.shape[:3], window, shifted, CPU)
    slots = window_partition(qkv.flatten(3), layout)
    out = formula(slots.view(*slots.shape[:2], *qkv.shape[3:]), scale, table, layout.groups)
    return window_reverse(out.flatten(2), layout, qkv.shape[1:3]).view(*qkv.shape[:3], *qkv.shape[4:])
