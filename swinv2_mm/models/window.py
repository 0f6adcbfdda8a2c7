"""Window tiling: which token sits in which slot of which window, and which slots may attend to each other.

Padding, cyclic shift and partition are one permutation of tokens (padding slots excepted). It is planned once per
shape as an index, so that a block moves its features into windows and back with a single gather each way, instead of
the pad, roll and partition copies and their inverses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.models.recording import may_keep

# Codes of a slot along one axis. A window holds several regions only where the roll brought opposite borders together
# (WRAPPED) or where the map ended (PAD).
_REGULAR, _WRAPPED, _PAD = 0, 1, 2


@dataclass(frozen=True)
class WindowGroup:
    """Windows that share one attention mask; they are neighbours in the order of the layout.

    Attributes:
        start, stop: The group is ``windows[start:stop]`` of the ``B * nW`` windows.
        regions: ``(N,)``, the region of each slot; slots attend to those of their own. None where all are one.
    """

    start: int
    stop: int
    regions: Tensor | None

    def mask(self, first: int = 0, last: int | None = None) -> Tensor | None:
        """``(last - first, N)``, True where the row's slot may attend to the column's; None where all may."""
        return None if self.regions is None else self.regions[first:last, None] == self.regions


@dataclass(frozen=True)
class WindowLayout:
    """The permutation between a ``(B, H, W)`` map and its ``(B * nW, N)`` windows.

    Attributes:
        window: ``(Wh, Ww)`` as used, in tokens.
        gather: ``(B * nW * N,)``, the token in ``0 .. B * H * W - 1`` for each slot; any token for a padding slot.
        scatter: ``(B * H * W,)``, the slot of each token.
        pads: The slots that hold padding.
        groups: Cover all windows, in order.
    """

    window: tuple[int, int]
    gather: Tensor
    scatter: Tensor
    pads: Tensor
    groups: tuple[WindowGroup, ...]


def effective_window(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Shrink a window to the map where it is larger.

    With padding masked, this changes no result: the bias depends on offsets alone and padding is never attended to.
    """
    # A compiler would take min() for a decision, and compile one side of it.
    smaller = torch.sym_min if is_symbolic(*size) else min
    return smaller(size[0], window[0]), smaller(size[1], window[1])


def is_symbolic(*sizes: int) -> bool:
    """Whether a compiler or an exporter means any size by these: nothing may then be decided by them."""
    return torch.compiler.is_dynamo_compiling() or any(isinstance(size, torch.SymInt) for size in sizes)


def fit_window(size: tuple[int, int], window: tuple[int, int], balanced: bool) -> tuple[int, int]:
    """The window to use on a map; ``balanced`` spreads the map evenly over as many windows as it needs anyway.

    Per axis, ``ceil(size / window)`` windows cover the map; the smallest window with which they still do so pads it the
    least: 25 rows with a window of 8 become 4 windows of 7 instead of 4 of 8.
    """
    if not balanced:
        return window
    return tuple(-(-length // -(-length // side)) for length, side in zip(size, window, strict=True))


def padding_to_windows(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Rows at the bottom and columns at the right that complete the last windows."""
    return -size[0] % window[0], -size[1] % window[1]


def shift_of(size: tuple[int, int], window: tuple[int, int], shifted: bool) -> tuple[int, int]:
    """How far windows are shifted: half a window, but not along an axis whose single window sees everything already."""
    return tuple(side // 2 if shifted and length > side else 0 for length, side in zip(size, window, strict=True))


def _axis(size: int, window: int, shift: int) -> tuple[list[int], dict[tuple[int, ...], list[int]]]:
    """Plan one axis: the token of each slot, and the windows by the codes of their slots."""
    count = -(-size // window)
    length = count * window
    tokens, codes = [], []
    for slot in range(length):
        token = (slot + shift) % length
        tokens.append(token)
        codes.append(_PAD if token >= size else _WRAPPED if slot + shift >= length else _REGULAR)
    kinds: dict[tuple[int, ...], list[int]] = {}
    for index in range(count):
        kinds.setdefault(tuple(codes[index * window:(index + 1) * window]), []).append(index)
    return tokens, kinds


def _regions(rows: Sequence[int], cols: Sequence[int]) -> list[int] | None:
    """The region of each of the ``N`` slots of a window with these codes, or None where all are one."""
    # Padding is a region of its own: never seen by a real token, while its own soft-max stays defined.
    regions = [4 if _PAD in (row, col) else 2 * row + col for row in rows for col in cols]
    return None if len(set(regions)) == 1 else regions


def window_layout(B: int, H: int, W: int, window: tuple[int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """Plan the windows of ``B`` maps of ``H x W`` tokens; padding slots are masked.

    Plans are kept, but for those made while somebody records: their tensors are part of what is recorded.

    Args:
        B, H, W: Batch size and map size, each at least 1.
        window: ``(Wh, Ww)``, in tokens, at most ``(H, W)`` if no padding beyond the last window is wanted.
        shifted: Shift by half a window along each axis that has more than one window.
        device: Where the indices live.
    """
    return (_kept_plan if may_keep(device) else _plan)(B, H, W, window, shifted, device)


def _plan(B: int, H: int, W: int, window: tuple[int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """See :func:`window_layout`. Planned in NumPy: a tracer sees constants, and nothing of how they were found."""
    Wh, Ww = window
    N = Wh * Ww
    shift = shift_of((H, W), window, shifted)
    row_tokens, row_kinds = _axis(H, Wh, shift[0])
    col_tokens, col_kinds = _axis(W, Ww, shift[1])
    rows, cols = np.array(row_tokens).reshape(-1, Wh), np.array(col_tokens).reshape(-1, Ww)
    batch = np.arange(B).reshape(B, 1, 1, 1, 1) * (H * W)
    gather, real, groups, start = [], [], [], 0
    for row_codes, row_windows in row_kinds.items():
        for col_codes, col_windows in col_kinds.items():
            r = rows[row_windows][:, None, :, None]                      # (nr, 1, Wh, 1)
            c = cols[col_windows][None, :, None, :]                      # (1, nc, 1, Ww)
            token = batch + np.minimum(r, H - 1) * W + np.minimum(c, W - 1)   # (B, nr, nc, Wh, Ww)
            gather.append(token.reshape(-1))
            real.append(np.broadcast_to((r < H) & (c < W), token.shape).reshape(-1))
            stop = start + token.size // N
            groups.append((start, stop, _regions(row_codes, col_codes)))
            start = stop
    gather, real = np.concatenate(gather), np.concatenate(real)
    slots = np.flatnonzero(real)
    scatter = np.empty(B * H * W, dtype=np.int64)
    scatter[gather[slots]] = slots
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve a later training step

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.int64), device=device)

        return WindowLayout(window, tensor(gather), tensor(scatter), tensor(np.flatnonzero(~real)), tuple(
            WindowGroup(start, stop, None if regions is None else tensor(regions)) for start, stop, regions in groups))


_kept_plan = lru_cache(maxsize=64)(_plan)  # stages x (plain, shifted) x a few image shapes; two int64 per token


class _ToWindows(torch.autograd.Function):
    """Gather whose gradient is a gather too: a permutation needs no atomic scatter-add.

    The gradient of a padding slot is dropped; it is zero, since nothing real attends to padding.
    """

    @staticmethod
    def forward(x: Tensor, gather: Tensor, scatter: Tensor, pads: Tensor) -> Tensor:
        return x.index_select(0, gather)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor):
        gather, scatter, pads = ctx.saved_tensors
        return _FromWindows.apply(grad, gather, scatter, pads), None, None, None


class _FromWindows(torch.autograd.Function):
    """The inverse gather; what stands in padding slots is not read, and its gradient is zero."""

    @staticmethod
    def forward(x: Tensor, gather: Tensor, scatter: Tensor, pads: Tensor) -> Tensor:
        return x.index_select(0, scatter)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx, grad: Tensor):
        gather, scatter, pads = ctx.saved_tensors
        grad = _ToWindows.apply(grad, gather, scatter, pads)
        if pads.numel():
            grad = grad.index_fill(0, pads, 0)
        return grad, None, None, None


def window_partition(x: Tensor, layout: WindowLayout) -> Tensor:
    """Pad, shift and cut a feature map into windows.

    Args:
        x: Features, ``(B, H, W, C)``, of the shape that ``layout`` was planned for.
        layout: From :func:`window_layout`.

    Returns:
        Windows, ``(B * nW, N, C)``, in the order of ``layout.groups``. Padding slots hold an arbitrary token.
    """
    C = x.shape[-1]
    Wh, Ww = layout.window
    x = _ToWindows.apply(x.reshape(-1, C), layout.gather, layout.scatter, layout.pads)  # (B * nW * N, C)
    return x.view(-1, Wh * Ww, C)


def window_reverse(windows: Tensor, layout: WindowLayout, size: tuple[int, int]) -> Tensor:
    """Undo :func:`window_partition`: windows ``(B * nW, N, C)`` to features ``(B, H, W, C)`` of ``size = (H, W)``."""
    C = windows.shape[-1]
    x = _FromWindows.apply(windows.reshape(-1, C), layout.gather, layout.scatter, layout.pads)  # (B * H * W, C)
    return x.view(-1, *size, C)


def pad_bottom_right(x: Tensor, rows: int, cols: int) -> Tensor:
    """Append zero tokens to ``(B, H, W, C)``."""
    return F.pad(x, (0, 0, 0, cols, 0, rows)) if is_padding(rows, cols) else x


def is_padding(rows: int, cols: int) -> bool:
    """Whether there is anything to pad. A compiler is told yes: it would compile each answer for each layer anew."""
    return is_symbolic(rows, cols) or rows > 0 or cols > 0
