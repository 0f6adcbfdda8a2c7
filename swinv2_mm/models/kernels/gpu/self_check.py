"""The Triton kernels against float64 at their first use: a driver, a GPU or a compiler may be one that we never saw."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Pair = tuple[int, int]

# A window for each size of tile, by its most slots; the last stands for all larger ones.
WINDOWS = {16: (3, 4), 32: (5, 6), 64: (7, 8), 1023: (9, 9), 1024: (32, 32)}
# The largest difference that rounding explains, relative to the largest value; a wrong token or mask is beyond 0.1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TF32_TOLERANCE = 2e-2

_found: dict[tuple, str] = {}


def why_not_exact(
    attend: Callable[..., Tensor], device: torch.device, dtype: torch.dtype, head_width: int, slots: int, tf32: bool
) -> str:
    """What is wrong with the kernels' results on a GPU; empty if nothing is. Looks once per process and kind of shape.

    Args:
        attend: The attention, with the arguments of ``fused_window_attention``.
        dtype: The type of queries, keys and values.
        head_width: Channels of a head.
        slots: Tokens of a window.
        tf32: Whether float32 is multiplied in TF32.
    """
    window = next((window for most, window in WINDOWS.items() if slots <= most), WINDOWS[1024])
    kind = device, dtype, head_width, window, tf32
    if kind not in _found:
        tolerance = TF32_TOLERANCE if tf32 and dtype == torch.float32 else TOLERANCE[dtype]
        _found[kind] = _check(attend, device, dtype, head_width, window, tolerance)
    return _found[kind]


def _check(
    attend: Callable[..., Tensor],
    device: torch.device,
    dtype: torch.dtype,
    head_width: int,
    window: Pair,
    tolerance: float,
) -> str:
    """Output and gradients of a shifted, padded map."""
    H, W, nH = window[0] + 4, 2 * window[1] + 1, 2
    shift = window[0] // 2, window[1] // 2
    generator = torch.Generator().manual_seed(0)
    shapes = (1, H, W, 3, nH, head_width), (nH, 2 * window[0] - 1, 2 * window[1] - 1), (1, H, W, nH * head_width)
    qkv, table, grad = (torch.randn(shape, generator=generator) for shape in shapes)
    given = qkv.to(dtype), table, torch.tensor([5.0, 20.0])
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [x.clone().to(device).requires_grad_() for x in given]
        exact = [x.double().requires_grad_() for x in given]
        out, right = attend(*inputs, window, shift), _formula(*exact, window, shift)
        found = [out, *torch.autograd.grad(out, inputs, grad.to(device, dtype))]
        expected = [right, *torch.autograd.grad(right, exact, grad.to(dtype).double())]
    for name, mine, right in zip(('output', 'gradient', 'bias', 'scale'), found, expected, strict=True):
        error = float((mine.detach().cpu().double() - right.detach()).abs().max() / right.detach().abs().max())
        if not error <= tolerance * (10 if name == 'scale' else 1):  # a sum of many terms of both signs
            return (
                f'on this GPU its {name} in a small problem is off by {error:.1e} of the largest value ({dtype}, '
                f'window {window[0]} x {window[1]}), so its compiler or driver computes something else'
            )
    return ''


def _formula(qkv: Tensor, table: Tensor, scale: Tensor, window: Pair, shift: Pair) -> Tensor:
    """All pairs of a map's tokens: who is in my window of the rolled map, and was so near before the roll?"""
    H, W = qkv.shape[1:3]
    (Wh, Ww), (down, right) = window, shift
    y, x = torch.arange(H).repeat_interleave(W), torch.arange(W).repeat(H)
    cell = (y - down) % (-(-H // Wh) * Wh) // Wh, (x - right) % (-(-W // Ww) * Ww) // Ww
    below, beside = y[:, None] - y, x[:, None] - x  # of each query from each key
    seen = (cell[0][:, None] == cell[0]) & (cell[1][:, None] == cell[1]) & (below.abs() < Wh) & (beside.abs() < Ww)
    q, k, v = qkv.flatten(0, 2).permute(1, 2, 0, 3)  # 3 x (nH, H * W, d)
    cosine = torch.nn.functional.normalize(q, dim=-1) @ torch.nn.functional.normalize(k, dim=-1).transpose(1, 2)
    bias = table[:, below.clamp(1 - Wh, Wh - 1) + Wh - 1, beside.clamp(1 - Ww, Ww - 1) + Ww - 1]
    logits = (scale[:, None, None] * cosine + bias).masked_fill(~seen, -math.inf)
    return (logits.softmax(-1) @ v).permute(1, 0, 2).reshape(1, H, W, -1)
