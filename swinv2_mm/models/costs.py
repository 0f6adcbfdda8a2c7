"""The cost of the backbone on an image size: windows and maps, padding, multiply-adds."""

from __future__ import annotations

import logging

from torch.nn import Module

from swinv2_mm.models.cache import is_recorded
from swinv2_mm.models.window import padding_to_windows

Pair = tuple[int, int]
LOGGER = logging.getLogger('swinv2_mm')


def windows_on(backbone: Module, size: Pair) -> list[tuple[Pair, Pair]]:
    """For each stage its map and the window used on it, in tokens, for images of ``(H, W)`` pixels."""
    H, W = (-(-side // backbone.patch_size) for side in size)
    found = []
    for i, stage in enumerate(backbone.stages):
        if i:
            H, W = -(-H // 2), -(-W // 2)
        found.append(((H, W), stage.blocks[0].window_on((H, W))))
    return found


def padding_cost(backbone: Module, size: Pair) -> list[float]:
    """Tokens that the windows compute per token of the map, for each stage, for images of ``(H, W)`` pixels."""
    costs = []
    for (H, W), window in windows_on(backbone, size):
        rows, cols = padding_to_windows((H, W), window)
        costs.append((H + rows) * (W + cols) / (H * W))
    return costs


def multiply_adds(backbone: Module, size: Pair) -> list[int]:
    """Multiply-adds (papers: FLOPs) of one image of ``(H, W)`` pixels, for each stage.

    All matrix products count: attention and its projections, on windows with their padding; the MLP on the map; the
    patch embedding in the first stage, patch merging in the others. Not counted are element-wise operations, norms,
    soft-max, and the MLP of the position bias, which depends on the weights alone: evaluation computes it once.
    Microsoft's ``flops()`` counts the same, and the norms.
    """
    counts = []
    for stage, C, ((H, W), window), cost in zip(
        backbone.stages, backbone.num_features, windows_on(backbone, size), padding_cost(backbone, size), strict=True
    ):
        N = window[0] * window[1]
        hidden = stage.blocks[0].mlp.fc1.out_features
        entry = backbone.patch_embed.proj if stage.downsample is None else stage.downsample.reduction
        in_windows = round(H * W * cost) * (4 * C * C + 2 * N * C)
        counts.append(H * W * entry.weight.numel() + len(stage.blocks) * (in_windows + H * W * 2 * C * hidden))
    return counts


def log_padding(backbone: Module, size: Pair, logged: set) -> None:
    """Log at debug level the padding cost of an image size, once; ``logged`` holds the sizes that were logged."""
    if is_recorded() or not LOGGER.isEnabledFor(logging.DEBUG) or (size, backbone.window_size) in logged:
        return
    logged.add((size, backbone.window_size))
    costs = ' '.join(f'{cost:.2f}' for cost in padding_cost(backbone, size))
    LOGGER.debug('%dx%d pixels: windows compute %s tokens per real one, by stage', *size, costs)
