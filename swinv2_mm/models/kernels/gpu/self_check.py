"""The Triton kernels against float64 at their first use: a driver, a GPU or a compiler may be one that we never saw."""

from __future__ import annotations

from functools import cache

import torch

from swinv2_mm.models.kernels.attention_op import Options, attention_on_map

# A window for each size of tile, by its most slots; the last stands for all larger ones.
WINDOWS = {16: (3, 4), 32: (5, 6), 64: (7, 8), 1023: (9, 9), 1024: (32, 32)}
# The largest difference that rounding explains, relative to the largest value; a wrong token or mask is beyond 0.1.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TF32_TOLERANCE = 2e-2


def why_not_exact(device: torch.device, dtype: torch.dtype, head_width: int, slots: int, tf32: bool) -> str:
    """What is wrong with the kernels' results on a GPU; empty if nothing is. Tells once per process and kind of shape.

    Args:
        dtype: The type of queries, keys and values.
        head_width: Channels of a head.
        slots: Tokens of a window.
        tf32: Whether float32 is multiplied in TF32.
    """
    window = next((window for most, window in WINDOWS.items() if slots <= most), WINDOWS[1024])
    return _checked(device, dtype, head_width, window, tf32)


@cache
def _checked(device: torch.device, dtype: torch.dtype, head_width: int, window: tuple[int, int], tf32: bool) -> str:
    from swinv2_mm.models.kernels.gpu.triton_attention import attention_without_checks

    H, W, nH = window[0] + 4, 2 * window[1] + 1, 2
    shift = window[0] // 2, window[1] // 2
    generator = torch.Generator().manual_seed(0)
    qkv, grad = (
        torch.randn(1, H, W, *more, generator=generator).to(dtype) for more in ((3, nH, head_width), (nH * head_width,))
    )
    table = torch.randn(nH, 2 * window[0] - 1, 2 * window[1] - 1, generator=generator)
    scale = torch.tensor([5.0, 20.0])
    with torch.inference_mode(False), torch.enable_grad():
        inputs = [x.detach().to(device).requires_grad_() for x in (qkv, table, scale)]
        exact = [x.double().requires_grad_() for x in (qkv, table, scale)]
        out = attention_without_checks(*inputs, window, shift)
        found = [out, *torch.autograd.grad(out, inputs, grad.to(device))]
        right = attention_on_map(exact[0], None, exact[2][:, None, None], exact[1], Options((H, W), True)).flatten(3)
        rights = [right, *torch.autograd.grad(right, exact, grad.double())]
    tolerance = TF32_TOLERANCE if tf32 and dtype == torch.float32 else TOLERANCE[dtype]
    for name, mine, expected in zip(('output', 'gradient of q, k, v', 'bias', 'scale'), found, rights, strict=True):
        error = float((mine.detach().cpu().double() - expected).abs().max() / expected.abs().max())
        if not error <= tolerance * (10 if name == 'scale' else 1):  # a sum of many terms of both signs
            return (
                f'on this GPU the {name} of a small problem is off by {error:.1e} of its largest value '
                f'({dtype}, window {window[0]} x {window[1]}), so Triton or its driver computes something else'
            )
    return ''
