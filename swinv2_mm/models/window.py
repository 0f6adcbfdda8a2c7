"""Window tiling: the token in each slot of each window, and the slots that may attend to each other.

Padding, cyclic shift and partition together are one permutation of tokens, planned once per shape as an index. A block
moves its features into windows and back with one gather each way, instead of copies for pad, roll and partition.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.models.cache import BoundedCache, is_symbolic, may_keep

# Codes of a slot along one axis. A window has several regions only if the roll brought opposite borders together
# (WRAPPED) or the map ended in it (PAD).
_REGULAR, _WRAPPED, _PAD = 0, 1, 2
# Pairs of slots of a map's windows below which a GPU computes all in one call: a bias for each window then takes less
# time than another launch.
FEW_PAIRS = 2**20


@dataclass(frozen=True)
class WindowGroup:
    """Windows ``start .. stop - 1`` of the ``B * nW``, with one attention mask, or one of each."""

    start: int
    stop: int
    # (N,) or (stop - start, N), of each slot; slots of one region attend to each other. None for a single region.
    regions: Tensor | None

    def outside(self, start: int, stop: int, first: int = 0, last: int | None = None) -> Tensor | None:
        """Where the queries ``first .. last - 1`` of windows ``start .. stop - 1`` must not see a key.

        Returns:
            ``(N or last - first, N)``, or with an own mask of each window ``(stop - start, 1, ..., N)``, for all heads.
            None if they see all.
        """
        if self.regions is None:
            return None
        if self.regions.ndim == 1:
            return self.regions[first:last, None] != self.regions
        regions = self.regions[start - self.start : stop - self.start, None]  # (n, 1, N)
        return regions[..., first:last, None] != regions[..., None, :]


@dataclass(frozen=True)
class WindowLayout:
    """The permutation between a ``(B, H, W)`` map and its ``(B * nW, N)`` windows."""

    window: tuple[int, int]  # (Wh, Ww), in tokens
    gather: Tensor  # (B * nW * N,), the token in 0 .. B * H * W - 1 for each slot; any token for a padding slot
    scatter: Tensor  # (B * H * W,), the slot of each token
    pads: Tensor  # the slots that hold padding
    groups: tuple[WindowGroup, ...]  # cover all windows, in order


def effective_window(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Shrink a window that is larger than the map; with masked padding no result changes."""
    # A compiler would treat min() as a branch, and compile one side of it.
    smaller: Any = torch.sym_min if is_symbolic(*size) else min
    return smaller(size[0], window[0]), smaller(size[1], window[1])


def fit_window(size: tuple[int, int], window: tuple[int, int], balanced: bool) -> tuple[int, int]:
    """The window to use on a map; ``balanced`` is the smallest that covers each axis with as many windows.

    It pads least: 25 rows with a window of 8 become 4 windows of 7 instead of 4 of 8.
    """
    if not balanced:
        return window
    counts = [(length + side - 1) // side for length, side in zip(size, window, strict=True)]
    rows, cols = ((length + count - 1) // count for length, count in zip(size, counts, strict=True))
    return rows, cols


def padding_to_windows(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """The rows at the bottom and the columns at the right that complete the last windows."""
    # Not -length % side: for a compiler, length plus this is the multiple of the side itself. ONNX rounds towards zero.
    rows, cols = ((length + side - 1) // side * side - length for length, side in zip(size, window, strict=True))
    return rows, cols


def shift_of(size: Sequence[int], window: tuple[int, int], shifted: bool) -> tuple[int, int]:
    """The shift of the windows: half a window, but 0 along an axis with a single window, which sees everything."""
    down, right = (side // 2 if shifted and length > side else 0 for length, side in zip(size, window, strict=True))
    return down, right


def _axis(size: int, window: int, shift: int) -> tuple[np.ndarray, dict[tuple[int, ...], list[int]]]:
    """The token in each slot of the windows along an axis, ``(count, window)``, padding from ``size`` on; and the
    windows by the codes of their slots."""
    count = -(-size // window)
    slots = np.arange(count * window).reshape(count, window)
    tokens = (slots + shift) % (count * window)
    codes = np.where(tokens >= size, _PAD, np.where(slots + shift >= count * window, _WRAPPED, _REGULAR))
    kinds: dict[tuple[int, ...], list[int]] = {}
    if count > 2:  # a shift of less than a window reaches no other than the last two
        kinds[(_REGULAR,) * window] = list(range(count - 2))
    for index in range(max(count - 2, 0), count):
        kinds.setdefault(tuple(codes[index].tolist()), []).append(index)
    return tokens, kinds


def _regions(rows: Sequence[int], cols: Sequence[int]) -> list[int] | None:
    """The region of each of the ``N`` slots of a window with these codes; None for a single region."""
    if len({*rows}) == len({*cols}) == 1:
        return None
    # Padding is its own region: no real token sees it, and its own soft-max stays defined.
    regions = [4 if _PAD in (row, col) else 2 * row + col for row in rows for col in cols]
    return None if len(set(regions)) == 1 else regions


def window_layout(B: int, H: int, W: int, window: tuple[int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """Plan the windows ``(Wh, Ww)`` of ``B`` maps of ``H x W`` tokens; padding slots are masked.

    Plans are kept, except while a tracer records: their tensors then belong to the recording.

    Args:
        shifted: Shift by half a window along each axis that has more than one window.
        device: Where the indices live.
    """
    if may_keep(device):
        return _kept_plan(B, H, W, window, shifted, device)
    return _constant_plan(B, H, W, window, shifted, device)


def _plan(B: int, H: int, W: int, window: tuple[int, int], shifted: bool, device: torch.device) -> WindowLayout:
    """:func:`window_layout` in the way that is fast on a device."""
    plan = _constant_plan if device.type == 'cpu' else _plan_on_device
    return plan(B, H, W, window, shifted, device)


def _plan_on_device(
    B: int, H: int, W: int, window: tuple[int, int], shifted: bool, device: torch.device
) -> WindowLayout:
    """:func:`window_layout` by operations of the device: nothing is copied to it, and nobody waits for it.

    The windows without a mask come first, as one group; each of the others has its own. If it is not worth a group, all
    have their own.
    """
    (Wh, Ww), (down, right) = window, shift_of((H, W), window, shifted)
    rows, cols = -(-H // Wh), -(-W // Ww)
    with torch.inference_mode(False), torch.no_grad():
        y, x = torch.arange(rows * Wh, device=device) + down, torch.arange(cols * Ww, device=device) + right
        wrapped = 2 * (y >= rows * Wh)[:, None] + (x >= cols * Ww)  # (rows * Wh, cols * Ww), as the tokens below
        y, x = y % (rows * Wh), x % (cols * Ww)
        padding = (y >= H)[:, None] | (x >= W)
        token = torch.where(padding, 0, y[:, None] * W + x)
        regions = torch.where(padding, 4, wrapped).to(torch.int8)

        # The last windows of an axis hold what wraps, and padding: masks are needed from these on.
        r, c = (H - down) // Wh, (W - right) // Ww
        order = torch.arange(rows * cols, device=device).view(rows, cols)
        order = torch.cat((order[:r, :c].flatten(), order[:r, c:].flatten(), order[r:].flatten()))
        token, padding, regions = (
            axes.view(rows, Wh, cols, Ww).transpose(1, 2).reshape(rows * cols, Wh * Ww)[order]
            for axes in (token, padding, regions)
        )

        plain, count = r * c, B * rows * cols
        if 0 < plain < rows * cols and (2 * plain <= rows * cols or count * (Wh * Ww) ** 2 <= FEW_PAIRS):
            plain = 0
        images = torch.arange(B, device=device).view(B, 1, 1)
        halves = slice(plain), slice(plain, None)
        gather = torch.cat([(images * (H * W) + token[half]).flatten() for half in halves])
        missing = torch.cat([padding[half].expand(B, -1, -1).flatten() for half in halves])
        # Sorted by their tokens, padding last: so the slot of each token is found without a search.
        scatter, pads = torch.where(missing, B * H * W, gather).argsort().split([B * H * W, len(gather) - B * H * W])
        masked = regions[plain:].expand(B, -1, -1).reshape(-1, Wh * Ww)
    groups = (WindowGroup(0, B * plain, None), WindowGroup(B * plain, count, masked))
    return WindowLayout(window, gather, scatter, pads, tuple(group for group in groups if group.start < group.stop))


def _constant_plan(
    B: int, H: int, W: int, window: tuple[int, int], shifted: bool, device: torch.device
) -> WindowLayout:
    """:func:`window_layout` by NumPy: a tracer sees constants, and not their computation."""
    Wh, Ww = window
    N = Wh * Ww
    shift = shift_of((H, W), window, shifted)
    (rows, row_kinds), (cols, col_kinds) = _axis(H, Wh, shift[0]), _axis(W, Ww, shift[1])
    masks = [_regions(row_codes, col_codes) for row_codes in row_kinds for col_codes in col_kinds]
    slots, tokens = B * rows.size * cols.size, B * H * W
    sizes = [slots, tokens, slots - tokens, *(N if mask else 0 for mask in masks)]
    everything = np.empty(sum(sizes), dtype=np.int64)  # one array, since each transfer to a GPU waits
    gather, scatter, pads, *regions = np.split(everything, np.cumsum(sizes)[:-1])
    scatter, images, start, pad, groups = scatter.reshape(B, H, W), np.arange(B)[:, None], 0, 0, []
    for row_codes, row_windows in row_kinds.items():
        for col_codes, col_windows in col_kinds.items():
            r, c = rows[row_windows], cols[col_windows]  # (nr, Wh), (nc, Ww)
            count = len(r) * len(c)
            stop = start + B * count
            found = gather[start * N : stop * N].reshape(B, len(r), len(c), Wh, Ww)
            padded = _PAD in (*row_codes, *col_codes)
            if padded or any((*row_codes, *col_codes)):
                in_image = np.minimum(r, H - 1)[:, None, :, None] * W + np.minimum(c, W - 1)[:, None, :]
                np.add(images[..., None, None, None] * (H * W), in_image, out=found)
            else:  # most windows: the token of the first slot, plus the distance of the others from it
                first = images[..., None] * (H * W) + r[:, :1] * W + c[:, 0]
                inside = np.arange(Wh)[:, None] * W + np.arange(Ww)
                np.add(first.reshape(-1, 1), inside.ravel(), out=found.reshape(-1, N))
            if padded:
                real = (r < H)[:, None, :, None] & (c < W)[:, None, :]
                missing = start * N + np.flatnonzero(np.broadcast_to(~real, found.shape))
                pads[pad : pad + len(missing)] = missing
                pad += len(missing)
            # The slot of a token is a sum of three terms: of its image, its row and its column.
            by_row = np.arange(0, count * N, len(c) * N)[:, None] + np.arange(0, N, Ww)
            by_col = np.arange(0, len(c) * N, N)[:, None] + np.arange(Ww)
            _put_sums(scatter, r.ravel(), c.ravel(), images * (count * N) + start * N + by_row.ravel(), by_col.ravel())
            groups.append((start, stop))
            start = stop
    for into, mask in zip(regions, masks, strict=True):
        into[:] = mask or []
    with torch.inference_mode(False):  # a tensor made in inference mode could not serve a later training step
        slot_token, token_slot, pad_slots, *own = torch.from_numpy(everything).to(device).split(sizes)
    with_masks = zip(groups, own, strict=True)
    groups = tuple(WindowGroup(first, last, mask if len(mask) else None) for (first, last), mask in with_masks)
    return WindowLayout(window, slot_token, token_slot, pad_slots, groups)


def _put_sums(scatter: np.ndarray, rows: np.ndarray, cols: np.ndarray, by_row: np.ndarray, by_col: np.ndarray) -> None:
    """``scatter[:, rows, cols] = by_row[:, :, None] + by_col``, for the rows and columns inside the map."""
    H, W = scatter.shape[1:]
    if rows[-1] - rows[0] + 1 == len(rows) and cols[-1] - cols[0] + 1 == len(cols):  # nothing wraps: most windows
        part = scatter[:, rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]  # ends with the map
        np.add(by_row[:, : part.shape[1], None], by_col[: part.shape[2]], out=part)
        return
    r, c = np.flatnonzero(rows < H), np.flatnonzero(cols < W)
    scatter[:, rows[r][:, None], cols[c]] = by_row[:, r, None] + by_col[c]


def _bytes(plan: WindowLayout) -> int:
    regions = [group.regions for group in plan.groups if group.regions is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in (plan.gather, plan.scatter, plan.pads, *regions))


# Two int64 per token: the plans for two images of 800 x 1333 pixels take 13 MB, for all stages of a model.
_kept_plan = BoundedCache(_plan, _bytes, 128 * 2**20)


class _Permute(torch.autograd.Function):
    """Tokens ``(M, C)`` into windows, or back: a gather whose gradient is a gather, too, without atomic scatter-adds.

    The gradient of a padding slot is zero: on the way back nobody reads the slot, and no real token attends to it.
    """

    @staticmethod
    def forward(x: Tensor, gather: Tensor, scatter: Tensor, pads: Tensor, back: bool) -> Tensor:
        return x.index_select(0, scatter if back else gather)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *plan, ctx.back = inputs
        ctx.save_for_backward(*plan)

    @staticmethod
    def backward(ctx, grad: Tensor):
        gather, scatter, pads = ctx.saved_tensors  # once: activation checkpointing gives them a single time
        grad = _Permute.apply(grad, gather, scatter, pads, not ctx.back)
        if ctx.back and pads.numel():
            grad = grad.index_fill_(0, pads, 0)
        return grad, None, None, None, None


def window_partition(x: Tensor, layout: WindowLayout) -> Tensor:
    """Pad, shift and cut a feature map into windows.

    Args:
        x: Features, ``(B, H, W, C)``, of the shape that ``layout`` was planned for.

    Returns:
        Windows, ``(B * nW, N, C)``, in the order of ``layout.groups``. Padding slots hold an arbitrary token.
    """
    C = x.shape[-1]
    Wh, Ww = layout.window
    x = _Permute.apply(x.reshape(-1, C), layout.gather, layout.scatter, layout.pads, False)  # (B * nW * N, C)
    return x.view(-1, Wh * Ww, C)


def window_reverse(windows: Tensor, layout: WindowLayout, size: Sequence[int]) -> Tensor:
    """Undo :func:`window_partition`: windows ``(B * nW, N, C)`` to features ``(B, H, W, C)`` of ``size = (H, W)``."""
    C = windows.shape[-1]
    x = _Permute.apply(windows.reshape(-1, C), layout.gather, layout.scatter, layout.pads, True)  # (B * H * W, C)
    return x.view(-1, *size, C)


def pad_bottom_right(x: Tensor, rows: int, cols: int) -> Tensor:
    """Append rows and columns of zero tokens to ``(B, H, W, C)``."""
    return F.pad(x, (0, 0, 0, cols, 0, rows)) if is_padding(rows, cols) else x


def is_padding(rows: int, cols: int) -> bool:
    """Whether there is anything to pad. Always true for a compiler: it would compile both answers for each layer."""
    return is_symbolic(rows, cols) or rows > 0 or cols > 0


def cut(start: int, stop: int, at_a_time: int | None) -> Iterator[slice]:
    """Nearly equal slices of a range, none longer than ``at_a_time``."""
    size = stop - start
    count = 1 if at_a_time is None else -(-size // at_a_time)
    for i in range(count):
        yield slice(start + size * i // count, start + size * (i + 1) // count)
