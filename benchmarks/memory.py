"""Peak memory and time of one training step of SwinV2-T against image size, window and what saves memory.

    python benchmarks/memory.py --json benchmarks/results/memory.json --plot benchmarks/results/memory.png

A step is a forward and a backward pass of one image in float32. Each is run in a process of its own, once; the peak is
its resident memory, less what it took with the model built. A step that needs more than ``--limit`` is reported as
such. Peers are those that import.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from backbones import available, build, packages
from measuring import GIB, PeakMemory, about, new_table, print_report, report

WAYS = {
    'ours': dict(),
    'ours, with_cp': dict(checkpointing=True),
    'ours, attn_chunk': dict(attn_chunk='auto'),
    'ours, with_cp, attn_chunk': dict(checkpointing=True, attn_chunk='auto'),
}


def ways_of(peers: list[str]) -> list[str]:
    """Ours, then each peer as it is and, where it can, with checkpointing."""
    return [
        *WAYS,
        *(
            way
            for peer in peers
            for way in (peer, f'{peer}, checkpointing')
            if way not in ('torchvision, checkpointing', 'microsoft, checkpointing')
        ),
    ]


def step(way: str, side: int, window: int, limit: float) -> dict[str, float] | None:
    """Run one step in this process; None if it needs more than ``limit`` GiB."""
    torch.manual_seed(0)
    name, checkpointing = way.partition(',')[0], 'checkpointing' in way
    model = build(name, 'tiny', (side, side), window, **WAYS.get(way, dict(checkpointing=checkpointing))).train()
    image = torch.rand(1, 3, side, side)
    memory = PeakMemory()
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + int(limit * GIB),) * 2)
    start = time.perf_counter()
    try:
        sum(features.square().mean() for features in model(image)).backward()
    except (MemoryError, RuntimeError) as error:
        if 'alloc' not in str(error) and not isinstance(error, MemoryError):
            raise
        return None
    seconds = time.perf_counter() - start
    return dict(gib=memory.above() / GIB, seconds=seconds)


def in_child(*arguments: object) -> Any:
    command = [sys.executable, __file__, '--child', *map(str, arguments)]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout.splitlines()[-1]) if child.returncode == 0 else None


def measure(sides: list[int], windows: list[int], limit: float) -> Iterator[dict[str, Any]]:
    """The report after every combination, with what is left to do on stderr."""
    peers = available()
    ways = ways_of(peers)
    jobs = [(way, side, window) for side in sides for window in windows for way in ways]
    steps, start, here = [], time.monotonic(), about(**packages(peers))
    for done, (way, side, window) in enumerate(jobs):
        left = (time.monotonic() - start) / done * (len(jobs) - done) if done else 0
        print(
            f'\r{done}/{len(jobs)}, about {left / 60:.0f} min left; now {way}, {side} px, window {window}      ',
            end='',
            file=sys.stderr,
            flush=True,
        )
        result = in_child(way, side, window, limit)
        steps.append(dict(way=way, side=side, window=window, **(result or dict(gib=None, seconds=None))))
        yield dict(about=here, limit_gib=limit, steps=steps)
    print(file=sys.stderr)


def show(found: dict[str, Any]) -> None:
    """Print the report as a table: peak in GiB and seconds."""
    cases = list(dict.fromkeys((row['side'], row['window']) for row in found['steps']))
    words = 'One training step of SwinV2-T, float32: GiB above the model (seconds)'
    table = new_table(words, '', *(f'{side} px, w{window}' for side, window in cases))
    for way in dict.fromkeys(row['way'] for row in found['steps']):
        cells = {(row['side'], row['window']): row for row in found['steps'] if row['way'] == way}
        table.add_row(
            way,
            *(
                f'{cells[case]["gib"]:.2f} ({cells[case]["seconds"]:.0f})'
                if cells[case]['gib'] is not None
                else f'> {found["limit_gib"]:g}'
                for case in cases
            ),
        )
    print_report(table, found, 32 + 17 * len(cases))


def plot(found: dict[str, Any], path: Path) -> None:
    """Peak against image size, one panel per window; a step beyond the limit has no point."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    windows = list(dict.fromkeys(row['window'] for row in found['steps']))
    figure, axes = plt.subplots(1, len(windows), figsize=(4.2 * len(windows), 4), sharey=True, squeeze=False)
    for axis, window in zip(axes[0], windows, strict=True):
        for way in dict.fromkeys(row['way'] for row in found['steps']):
            points = [
                (row['side'], row['gib'])
                for row in found['steps']
                if (row['way'], row['window']) == (way, window) and row['gib'] is not None
            ]
            style = dict(linestyle='-' if way in WAYS else '--', marker='o' if way in WAYS else 'x')
            axis.plot(*zip(*points, strict=True) if points else ([], []), label=way, **style)
        axis.set(title=f'window {window}', xlabel='side of the image in pixels', yscale='log')
        axis.set_xticks(sorted({row['side'] for row in found['steps']}))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel('peak memory of a training step in GiB')
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sides', type=int, nargs='+', default=[512, 1024, 1536], help='of square images, in pixels')
    parser.add_argument('--windows', type=int, nargs='+', default=[8, 16, 32, 48], help='windows')
    parser.add_argument('--limit', type=float, default=16, metavar='GIB', help='give up beyond this; default 16')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    parser.add_argument('--plot', metavar='FILE', help='draw them into this file')
    parser.add_argument('--child', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, side, window, limit = args.child
        print(json.dumps(step(way, int(side), int(window), float(limit))))
        return
    report(measure(args.sides, args.windows, args.limit), show, args.json, plot, args.plot)


if __name__ == '__main__':
    main()
