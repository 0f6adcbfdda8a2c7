"""Window attention on a GPU as one fused operation of Triton, from a map's queries, keys and values to its outputs.

Padding, shift and partition are index arithmetic inside the kernels (triton_kernels.py), and the soft-max runs over
tiles: there are no copies of the map in windows and no ``N x N`` logits. Triton is imported when it first runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from swinv2_mm.compat import autocast_dtype, custom_op, multiplies_in_tf32
from swinv2_mm.models.kernels.gpu import usable
from swinv2_mm.models.kernels.gpu.self_check import why_not_exact

Pair = tuple[int, int]
# From this size on a program takes 128 queries, not 64: it reads the keys, which exceed the L1 cache, half as often.
MANY_SLOTS = 1024
# The programs that sum the table's gradient: few, since each adds to the whole table once, but several per
# multiprocessor (an H100 has 132, an A100 108), so that none is idle.
TABLE_PROGRAMS = 1024
# The programs of the forward pass where a tile is a window: each loads the bias of its head once, for some windows.
WINDOW_PROGRAMS = 2048


def fused_window_attention(qkv: Tensor, table: Tensor, scale: Tensor, window: Pair, shift: Pair) -> Tensor:
    """Cosine attention, ``softmax(scale * cos(q, k) + bias) v``, in shifted windows of a map (paper, section 3.2).

    Padding that completes the last windows is never attended to, nor are tokens that only the shift brought together.
    Lengths, logits and soft-max are computed in float32, vectors shorter than 1e-6 count as zero.

    Args:
        qkv: ``(B, H, W, 3, nH, d)``: queries, keys and values of the tokens; float16, bfloat16 or float32. Float32 is
            multiplied as such, or in TF32 where ``torch.backends.cuda.matmul`` says so.
        table: ``(nH, 2 * Wh - 1, 2 * Ww - 1)`` float32, the bias of each offset.
        scale: ``(nH,)`` float32, the factor of the cosine.
        window: ``(Wh, Ww)``, in tokens.
        shift: ``(sh, sw)``, in tokens, each in ``0 .. window - 1``; 0 where the axis has a single window.

    Returns:
        ``(B, H, W, nH * d)`` in the type of ``qkv``.

    Raises:
        ValueError: Triton cannot compute this here, or a shape or type is not as above.
    """
    reason = why_not(qkv, window)
    if reason:
        raise ValueError(f"attn_backend='triton' cannot be used: {reason}. Choose attn_backend='sdpa'.")
    nH, (Wh, Ww) = qkv.shape[4], window
    for name, tensor, shape in (('table', table, (nH, 2 * Wh - 1, 2 * Ww - 1)), ('scale', scale, (nH,))):
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(
                f'{name} is {tuple(tensor.shape)}, {tensor.dtype}; {nH} heads and a window of '
                f'{Wh} x {Ww} need {shape}, torch.float32.'
            )
    return attention_without_checks(qkv, table, scale, window, shift)


def is_faster(x: Tensor, window: Pair, head_width: int) -> bool:
    """Whether ``attn_backend='auto'`` takes the Triton kernels for a map ``(B, H, W, C)`` on a GPU."""
    # A compiler does not have to ask the GPU while nothing was measured.
    if not usable.TRITON_IS_FASTER or usable.why_not_by_default(usable.capability(x.device), window):
        return False
    dtype = autocast_dtype('cuda') or x.dtype
    return not why_not(torch.empty(0, 0, 0, 3, 0, head_width, dtype=dtype, device=x.device), window)


def why_not(qkv: Tensor, window: Pair) -> str:
    """Why the Triton kernels cannot compute the attention of a map, or compute something else; empty if they can."""
    reason = usable.why_not_triton(qkv, window)
    if reason or not usable.may_wait(qkv):
        return reason
    kind = qkv.device, qkv.dtype, qkv.shape[-1], math.prod(window), multiplies_in_tf32()
    return why_not_exact(attention_without_checks, *kind)


def attention_without_checks(qkv: Tensor, table: Tensor, scale: Tensor, window: Pair, shift: Pair) -> Tensor:
    """:func:`fused_window_attention` of what is known to be as it says."""
    return _attention(qkv.contiguous(), table.contiguous(), scale.contiguous(), list(window), list(shift))[0]


class _Launch:
    """Launches kernels on the windows of a map.

    The sizes of tiles follow the compiler's reports for Ampere and Hopper: few registers spill, if any, and the shared
    memory of the smaller devices is enough. How many keys a step takes, and how many warps, a GPU times at first use.
    """

    fastest: ClassVar[dict[tuple, tuple[int, int]]] = {}  # (STEP, num_warps) by kernel, GPU and kind of problem

    def __init__(self, qkv: Tensor, window: Sequence[int], shift: Sequence[int]) -> None:
        B, H, W, _, nH, d = qkv.shape
        self.windows, self.heads = B * -(-H // window[0]) * -(-W // window[1]), nH
        self.slots = math.prod(window)
        self.geometry = (B * H * W, nH, H, W, *window, *shift)
        D = _power_of_two(d)
        tf32 = qkv.dtype == torch.float32 and multiplies_in_tf32()
        self.constants = dict(d=d, D=D, PRECISION='tf32' if tf32 else 'ieee', num_stages=2)
        heavy = qkv.element_size() > 2 or D > 32
        # Slots of a program that goes past all slots of its window, and the side of the tile of one that owns pairs.
        self.rows = self.pair = min(_power_of_two(self.slots), 32 if heavy else 64)
        if self.rows == 64 and self.slots >= MANY_SLOTS:
            self.rows = 128
        self.row_warps = max(self.rows // 16, 4 if heavy else 1)
        self.pair_warps = max(self.pair // 8, 4 if heavy else 1)

    def tiles(self, size: int) -> int:
        """Tiles of ``size`` slots in a window."""
        return -(-self.slots // size)

    def by_rows(self, kernel: str, *args: Tensor | None) -> None:
        """A program for each ``rows`` slots of a window and head, past all slots of the window."""
        step, warps = self._fastest(kernel, args)
        self._by_rows(kernel, args, step, warps)

    def _by_rows(self, kernel: str, args: Sequence[Tensor | None], step: int, warps: int) -> None:
        programs = self.windows * self.heads * self.tiles(self.rows)
        self(kernel, programs, *args, BLOCK=self.rows, STEP=step, num_warps=warps)

    def candidates(self) -> list[tuple[int, int]]:
        """``(STEP, num_warps)``; the first is used where nothing can be timed."""
        step = min(self.rows, 32)
        return [(step, self.row_warps), (min(self.rows, 64), self.row_warps), (step, 2 * self.row_warps)]

    def _fastest(self, kernel: str, args: Sequence[Tensor | None]) -> tuple[int, int]:
        """The fastest of the candidates. The kernels write all that they compute, so each may run several times."""
        qkv, candidates = args[0], self.candidates()
        assert qkv is not None
        if not usable.may_wait(qkv):
            return candidates[0]
        kind = kernel, qkv.device, qkv.dtype, self.constants['PRECISION'], qkv.shape[-1], self.rows
        if kind not in self.fastest:
            times = {}
            for candidate in candidates:
                self._by_rows(kernel, args, *candidate)  # compiles it
                times[candidate] = self._milliseconds(kernel, args, *candidate)
            self.fastest[kind] = min(times, key=times.__getitem__)
        return self.fastest[kind]

    def _milliseconds(self, kernel: str, args: Sequence[Tensor | None], step: int, warps: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(3):
            self._by_rows(kernel, args, step, warps)
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def __call__(self, kernel: str, programs: int, *args: Any, **constants: Any) -> None:
        from swinv2_mm.models.kernels.gpu import triton_kernels

        with torch.cuda.device_of(args[0]):
            getattr(triton_kernels, kernel)[(programs,)](*args, *self.geometry, **self.constants, **constants)


def _power_of_two(number: int) -> int:
    """The next power of two; at least 16, the smallest side of a matrix product in Triton."""
    return max(16, 1 << (number - 1).bit_length())


@custom_op(
    'swinv2_mm::window_attention',
    '(Tensor qkv, Tensor table, Tensor scale, SymInt[] window, SymInt[] shift) -> (Tensor, Tensor)',
)
def _attention(qkv: Tensor, table: Tensor, scale: Tensor, window: list[int], shift: list[int]) -> tuple[Tensor, Tensor]:
    """The output, and each soft-max's denominator as a power of 2, ``(nH, B * H * W)`` float32."""
    out, lse = _attention_like(qkv, table, scale, window, shift)
    launch = _Launch(qkv, window, shift)
    if launch.tiles(launch.pair) > 1:
        launch.by_rows('forward_kernel', qkv, table, scale, out, lse)
        return out, lse
    chunks = max(1, min(launch.windows, WINDOW_PROGRAMS // launch.heads))
    args = qkv, table, scale, out, lse, launch.windows, chunks
    constants = dict(BLOCK=launch.pair, num_warps=launch.row_warps)
    launch('forward_window_kernel', chunks * launch.heads, *args, **constants)
    return out, lse


@_attention.register_fake
def _attention_like(qkv, table, scale, window, shift):
    B, H, W, _, nH, d = qkv.shape
    return qkv.new_empty(B, H, W, nH * d), qkv.new_empty(nH, B * H * W, dtype=torch.float32)


@custom_op(
    'swinv2_mm::window_attention_backward',
    '(Tensor grad, Tensor qkv, Tensor table, Tensor scale, Tensor out, Tensor lse, SymInt[] window, SymInt[] shift)'
    ' -> (Tensor, Tensor, Tensor)',
)
def _attention_backward(
    grad: Tensor,
    qkv: Tensor,
    table: Tensor,
    scale: Tensor,
    out: Tensor,
    lse: Tensor,
    window: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``qkv``, ``table`` and ``scale``; every token is a query and a key in one window."""
    launch = _Launch(qkv, window, shift)
    tiles, nH = launch.tiles(launch.pair), launch.heads
    chunks = max(1, min(launch.windows, TABLE_PROGRAMS // (nH * tiles**2)))
    grad_qkv, grad_table = torch.empty_like(qkv), torch.zeros_like(table)
    if tiles == 1:
        delta, grad_scale = None, scale.new_empty(chunks, nH, 1)
    else:
        delta, grad_scale = torch.empty_like(lse), scale.new_empty(launch.windows, nH, launch.tiles(launch.rows))
        launch.by_rows('backward_q_kernel', qkv, table, scale, out, lse, grad, grad_qkv, grad_scale, delta)
        launch.by_rows('backward_kv_kernel', qkv, table, scale, lse, grad, grad_qkv, delta)
    args = qkv, table, scale, lse, grad, grad_qkv, grad_scale, delta, grad_table, launch.windows, chunks
    constants = dict(BLOCK=launch.pair, WHOLE=tiles == 1, num_warps=launch.pair_warps)
    launch('backward_table_kernel', chunks * nH * tiles**2, *args, **constants)
    return grad_qkv, grad_table, grad_scale.sum((0, 2))


@_attention_backward.register_fake
def _(grad, qkv, table, scale, out, lse, window, shift):
    return torch.empty_like(qkv), torch.empty_like(table), torch.empty_like(scale)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, table, scale, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(qkv, table, scale, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attention_backward(grad.contiguous(), *ctx.saved_tensors, ctx.window, ctx.shift), None, None


_attention.register_autograd(_gradients, setup_context=_save)
