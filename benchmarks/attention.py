"""Time, memory and exactness of our window attention on a GPU: torch's operations beside the Triton kernels.

    python benchmarks/attention.py --json benchmarks/results/attention.json

Each row is the attention of a shifted block with its projections, ``WindowAttention``, on a feature map of one stage of
SwinV2-T, in autocast for half precision. A time is the median of rounds in which the ways take turns. Errors are the
largest differences from torch's operations in float64, relative to its largest value: of the output, and of the worst
gradient. ``-`` is out of memory, or what a way cannot compute.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measuring import Deadline, about, new_table, print_report, report, seconds
from torch import Tensor

from swinv2_mm.models.attention import WindowAttention
from swinv2_mm.models.window import effective_window

DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16, 'float32': torch.float32}
WAYS = 'sdpa', 'triton'
PASSES = {'forward': False, 'forward and backward': True}
DEPTHS = 2, 2, 6, 2  # of SwinV2-T
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

    def inputs(self, dtype: torch.dtype, device: str) -> tuple[Tensor, WindowAttention]:
        """Features and a layer, whose bias and scales are not those of a fresh one."""
        C = self.heads * self.width
        layer = WindowAttention(C, self.heads, (8, 8), attn_backend='sdpa').to(device)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 1.0)
        return torch.randn(self.B, self.H, self.W, C, device=device, dtype=dtype, requires_grad=True), layer


def stages(size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """``(H, W, nH)`` of the stages of SwinV2-T, for images that are padded to multiples of 32."""
    H, W = (-(-side // 32) * 8 for side in size)
    return [(H >> stage, W >> stage, 3 << stage) for stage in range(4)]


def step(way: str, case: Case, x: Tensor, layer: WindowAttention, backward: bool) -> list[Tensor]:
    """The output, and with ``backward`` all gradients; the features serve as the output's gradient."""
    layer.attn_backend = way
    window, size = effective_window((case.H, case.W), (case.side, case.side)), (case.H, case.W)
    half = x.dtype in (torch.float16, torch.bfloat16)
    autocast = torch.autocast(x.device.type, x.dtype) if half else contextlib.nullcontext()
    with torch.set_grad_enabled(backward), autocast:
        out = layer(x, window, True, size, (case.side, case.side))
    return [out, *torch.autograd.grad(out, (x, *layer.parameters()), x.detach().to(out.dtype))] if backward else [out]


def error(mine: Tensor, right: Tensor) -> float:
    return float((mine.detach().double() - right.detach()).abs().max() / right.detach().abs().max())


def exactness(way: str, case: Case, x: Tensor, layer: WindowAttention) -> dict[str, float]:
    """Errors beside float64, from the same numbers."""
    found = step(way, case, x, layer, backward=True)
    right = step('sdpa', case, x.detach().double().requires_grad_(), copy.deepcopy(layer).double(), backward=True)
    return dict(error=error(found[0], right[0]), gradient_error=max(map(error, found[1:], right[1:])))


def measure(case: Case, dtype: torch.dtype, device: str, rounds: int) -> list[dict[str, Any]]:
    """A row per way: milliseconds of the passes, MiB above the inputs, errors, and why it ``failed``; None for what was
    not measured."""
    x, layer = case.inputs(dtype, device)
    keys = *PASSES, 'mib', 'error', 'gradient_error', 'failed'
    rows: dict[str, dict[str, Any]] = {way: dict(way=way, **dict.fromkeys(keys)) for way in WAYS}
    for way, row in rows.items():
        try:
            step(way, case, x, layer, backward=True)  # compiles the kernels, too
            if device == 'cuda':
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                step(way, case, x, layer, backward=True)
                row['mib'] = (torch.cuda.max_memory_allocated() - before) / 2**20
            with contextlib.suppress(torch.OutOfMemoryError):  # of float64
                row.update(exactness(way, case, x, layer))
        except Exception as problem:  # the other way goes on
            row['failed'] = f'{type(problem).__name__}: {" ".join(str(problem).split())[:300]}'
    fits = [way for way in WAYS if not rows[way]['failed']]
    for name, backward in PASSES.items():
        calls = {way: partial(step, way, case, x, layer, backward) for way in fits}
        taken = [
            {way: seconds(call, device, RUNS if device == 'cuda' else 1) for way, call in calls.items()}
            for _ in range(rounds)
        ]
        for way in fits:
            rows[way][name] = 1000 * statistics.median(turn[way] for turn in taken)
    return list(rows.values())


def compared(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds of all blocks of SwinV2-T, by window, type and pass: ``sdpa_ms`` and ``triton_ms``, None where a
    stage was not measured."""
    found = []
    keys = dict.fromkeys((row['dtype'], row['window']) for row in rows)
    for (dtype, window), name in itertools.product(keys, PASSES):
        entry: dict[str, Any] = {'window': window, 'dtype': dtype, 'pass': name}
        for way in WAYS:
            mine = [row for row in rows if (row['dtype'], row['window'], row['way']) == (dtype, window, way)]
            times = [DEPTHS[row['stage']] * row[name] for row in mine if row[name] is not None]
            entry[f'{way}_ms'] = sum(times) if len(times) == len(DEPTHS) else None
        found.append(entry)
    return found


def measure_all(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report before and after every case, with where it is on stderr."""
    deadline, rows, here = Deadline(args.minutes), [], about(triton='triton')
    H, W = map(int, args.size.split('x'))
    cases = [
        (dtype, window, stage)
        for dtype, window, stage in itertools.product(args.dtypes, args.windows, range(len(DEPTHS)))
    ]
    left_out = [f'attention {dtype}, window {window}, stage {stage}' for dtype, window, stage in cases]
    found = dict(about=here, size=args.size, batch=args.batch, rows=rows, attention=[], left_out=left_out)
    yield found
    for done, (dtype, window, stage) in enumerate(cases):
        if deadline.over():
            break
        print(f'\r{left_out[done]}    ', end='', file=sys.stderr, flush=True)
        torch.manual_seed(0)
        case = Case(args.batch, *stages((H, W))[stage], 32, window)
        new = measure(case, DTYPES[dtype], args.device, args.rounds)
        rows += [dict(dtype=dtype, window=window, stage=stage, **row) for row in new]
        yield dict(found, attention=compared(rows), left_out=left_out[done + 1 :])
    print(file=sys.stderr)


def show(found: dict[str, Any]) -> None:
    """Print the report, one line per case."""
    number = lambda value, form: '-' if value is None else format(value, form)  # noqa: E731
    columns = 'type', 'window', 'stage', 'way', 'forward ms', 'with backward ms', 'MiB', 'error', 'of gradients'
    title = f'Shifted window attention of SwinV2-T, {found["batch"]} x {found["size"]}'
    table = new_table(title, *columns, left=('type', 'way'))
    forms = dict(zip((*PASSES, 'mib', 'error', 'gradient_error'), ('.3f', '.3f', '.0f', '.1e', '.1e'), strict=True))
    for row in found['rows']:
        table.add_row(
            *(str(row[key]) for key in ('dtype', 'window', 'stage', 'way')),
            *(number(row[key], form) for key, form in forms.items()),
            end_section=row['way'] == WAYS[-1],
        )
    print_report(table, found, 110)
    for reason in dict.fromkeys(f'{row["way"]}: {row["failed"]}' for row in found['rows'] if row['failed']):
        print(reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--windows', type=int, nargs='+', default=[8, 16, 24, 32], help='sides of the windows')
    parser.add_argument('--dtypes', nargs='+', default=[*DTYPES], choices=[*DTYPES], help='types of the features')
    parser.add_argument('--size', default='800x1333', metavar='HxW', help='of the images, in pixels')
    parser.add_argument('--batch', type=int, default=2, help='images at a time')
    parser.add_argument('--rounds', type=int, default=7, help=f'rounds of {RUNS} runs per way; default 7')
    parser.add_argument('--minutes', type=float, metavar='M', help='begin no further case after this time')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'], help='a CPU needs TRITON_INTERPRET=1')
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('benchmarks/attention.py measures on a CUDA GPU, and there is none.')
    report(measure_all(args), show, args.json)


if __name__ == '__main__':
    main()
