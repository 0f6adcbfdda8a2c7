"""Time, memory and exactness of window attention on a GPU: the fused kernels, our PyTorch path, and plain SDPA.

    python benchmarks/attention.py --json benchmarks/results/attention.json

The job is that of a shifted block up to its projection: from features ``(B, H, W, C)`` through the Linear that makes
queries, keys and values to the attended values ``(B, H, W, C)``, for the stages of SwinV2-T on two images of 800 x 1333
pixels. A time is the median of rounds in which the ways take turns. Errors are the largest differences from our path in
float64, relative to its largest value: of the output, and of the worst gradient. ``-`` is out of memory.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from measuring import about, new_table, print_report, report
from torch import Tensor

from swinv2_mm.models.kernels.cosine_attention import cosine_attention, unit_vectors
from swinv2_mm.models.kernels.gpu.triton_attention import fused_window_attention
from swinv2_mm.models.position_bias import spread_over_slots
from swinv2_mm.models.window import effective_window, window_layout, window_partition, window_reverse

DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16, 'float32': torch.float32}
RUNS = 10  # of a way in a row, between two looks at the clock


@dataclass(frozen=True)
class Case:
    """Maps of ``(B, H, W)`` tokens, heads, their width, and the side of the window."""

    B: int
    H: int
    W: int
    heads: int
    width: int
    side: int

    @property
    def window(self) -> tuple[int, int]:
        return effective_window((self.H, self.W), (self.side, self.side))

    def inputs(self, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        """Features, the Linear's weight, bias table and scale, as they are in training."""
        C, (Wh, Ww) = self.heads * self.width, self.window
        x = torch.randn(self.B, self.H, self.W, C, device=device, dtype=dtype)
        weight = (torch.randn(3 * C, C, device=device) / C**0.5).to(dtype)
        table = 16 * torch.rand(self.heads, 2 * Wh - 1, 2 * Ww - 1, device=device)
        scale = torch.full((self.heads,), 10.0, device=device)
        return tuple(t.requires_grad_() for t in (x, weight, table, scale))


STAGES = [(200, 334, 3), (100, 167, 6), (50, 84, 12), (25, 42, 24)]  # of SwinV2-T at 800 x 1333: H, W, heads


def fused(case: Case, x: Tensor, weight: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    """One operation on the map."""
    qkv = F.linear(x, weight).view(case.B, case.H, case.W, 3, case.heads, case.width)
    shift = [side // 2 if side < size else 0 for side, size in zip(case.window, (case.H, case.W), strict=True)]
    return fused_window_attention(qkv, table, scale, case.window, tuple(shift))


def in_windows(
    case: Case, x: Tensor, weight: Tensor, table: Tensor, scale: Tensor, attention: Callable[..., Tensor]
) -> Tensor:
    """The map gathered into windows, ``attention(qkv, scale, table, groups)`` on them, and back."""
    layout = window_layout(case.B, case.H, case.W, case.window, True, x.device)
    windows = window_partition(x, layout)  # (B * nW, N, C)
    qkv = F.linear(windows, weight).view(*windows.shape[:2], 3, case.heads, case.width)
    out = attention(qkv, scale.view(-1, 1, 1), table, layout.groups)  # (B * nW, N, nH, d)
    return window_reverse(out.flatten(2), layout, (case.H, case.W))


def keeping_no_logits(qkv: Tensor, scale: Tensor, table: Tensor, groups: Any) -> Tensor:
    """Our PyTorch path."""
    return cosine_attention(qkv, scale, table, groups, None)


def all_at_once(qkv: Tensor, scale: Tensor, table: Tensor, groups: Any) -> Tensor:
    """Plain SDPA with the bias and the mask of every window spelled out, ``(B * nW, nH, N, N)``."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 x (B * nW, nH, N, d)
    q, k = (unit_vectors(q) * scale).to(v.dtype), unit_vectors(k).to(v.dtype)
    bias, spelled = spread_over_slots(table).to(v.dtype), []
    for group in groups:
        masked = bias if group.regions is None else bias.masked_fill(~group.mask(), -math.inf)
        spelled.append(masked.expand(group.stop - group.start, *masked.shape))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.cat(spelled), scale=1.0).transpose(1, 2)


WAYS: dict[str, Callable[..., Tensor]] = {
    'fused': fused,
    'PyTorch': lambda *inputs: in_windows(*inputs, keeping_no_logits),
    'SDPA': lambda *inputs: in_windows(*inputs, all_at_once),
}


def step(way: str, case: Case, inputs: tuple[Tensor, ...], backward: bool) -> list[Tensor]:
    """The output, and with ``backward`` the gradients of all inputs; the features serve as the output's gradient."""
    if not backward:
        with torch.no_grad():
            return [WAYS[way](case, *inputs)]
    out = WAYS[way](case, *inputs)
    return [out, *torch.autograd.grad(out, inputs, inputs[0].detach())]


def seconds(way: str, case: Case, inputs: tuple[Tensor, ...], backward: bool) -> float:
    """A step's time on the clock, with all that Python takes to launch it."""
    wait = torch.cuda.synchronize if inputs[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(RUNS):
        step(way, case, inputs, backward)
    wait()
    return (time.perf_counter() - start) / RUNS


def exact(case: Case, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Output and gradients in float64, from the same numbers."""
    doubled = tuple(x.detach().double().requires_grad_() for x in inputs)
    return step('PyTorch', case, doubled, backward=True)


def error(mine: Tensor, right: Tensor) -> float:
    return float((mine.detach().double() - right).abs().max() / right.detach().abs().max())


def measure(case: Case, dtype: torch.dtype, device: str, rounds: int) -> list[dict[str, Any]]:
    """A row per way: milliseconds, MiB above the inputs, errors; None for what does not fit the memory."""
    inputs = case.inputs(dtype, device)
    rows = {way: dict(way=way, forward=None, both=None, mib=None, error=None, gradient_error=None) for way in WAYS}
    fits = []
    for way in WAYS:
        try:
            if device == 'cuda':
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            results = step(way, case, inputs, backward=True)  # compiles the kernels, too
            if device == 'cuda':
                rows[way]['mib'] = (torch.cuda.max_memory_allocated() - before) / 2**20
            fits.append(way)
            right = exact(case, inputs)
            rows[way]['error'] = error(results[0], right[0])
            rows[way]['gradient_error'] = max(map(error, results[1:], right[1:]))
        except torch.OutOfMemoryError:
            continue
        finally:
            results = right = None
    for name, backward in (('forward', False), ('both', True)):
        times: dict[str, list[float]] = {way: [] for way in fits}
        for _ in range(rounds):
            for way in fits:
                times[way].append(1000 * seconds(way, case, inputs, backward))
        for way in fits:
            rows[way][name] = statistics.median(times[way])
    return list(rows.values())


def measure_all(sides: list[int], dtypes: list[str], rounds: int) -> Iterator[dict[str, Any]]:
    """The report after every case, with where it is on stderr."""
    here = about(triton='triton') | dict(cuda=torch.version.cuda)
    rows = []
    for dtype, side, (stage, (H, W, heads)) in itertools.product(dtypes, sides, enumerate(STAGES)):
        print(f'\r{dtype}, window {side}, stage {stage}    ', end='', file=sys.stderr, flush=True)
        torch.manual_seed(0)
        found = measure(Case(2, H, W, heads, 32, side), DTYPES[dtype], 'cuda', rounds)
        rows += [dict(dtype=dtype, window=side, stage=stage, **row) for row in found]
        yield dict(about=here, rows=rows)
    print(file=sys.stderr)


def show(found: dict[str, Any]) -> None:
    """Print the report, one line per case."""
    number = lambda value, form: '-' if value is None else format(value, form)  # noqa: E731
    columns = 'type', 'window', 'stage', 'way', 'forward ms', 'with backward ms', 'MiB', 'error', 'of gradients'
    title = 'Shifted window attention of SwinV2-T, two images of 800 x 1333'
    table = new_table(title, *columns, left=('type', 'way'))
    for row in found['rows']:
        table.add_row(
            row['dtype'],
            str(row['window']),
            str(row['stage']),
            row['way'],
            number(row['forward'], '.3f'),
            number(row['both'], '.3f'),
            number(row['mib'], '.0f'),
            number(row['error'], '.1e'),
            number(row['gradient_error'], '.1e'),
            end_section=row['way'] == [*WAYS][-1],
        )
    print_report(table, found, 110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--windows', type=int, nargs='+', default=[8, 16, 24, 32], help='sides of the windows')
    parser.add_argument('--dtypes', nargs='+', default=[*DTYPES], choices=[*DTYPES], help='types of the features')
    parser.add_argument('--rounds', type=int, default=7, help=f'rounds of {RUNS} runs per way; default 7')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit('benchmarks/attention.py measures on a CUDA GPU, and there is none.')
    report(measure_all(args.windows, args.dtypes, args.rounds), show, args.json)


if __name__ == '__main__':
    main()
