"""Time and memory of converting a base-size checkpoint, beside reading and writing the same file with torch alone.

    python benchmarks/convert.py --json benchmarks/results/convert.json

The file has random weights of Swin-B in Microsoft's layout with all its buffers. Reading and writing (A) and converting
(B) take turns, so that whatever else the machine does hits both, each in a process of its own, as in a start of a
training. Memory is the peak of a process that converts, less that of one that only imports. This process stays small:
Linux counts the peak of a parent as its child's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import about, new_table, print_report, report

OUTPUTS = ('.pth', '.safetensors')
RATIO_GOAL, MEMORY_GOAL = 1.5, 2.5


def make_file(path: Path) -> None:
    """Write what Microsoft's code saves for Swin-B with window 8 at 256 pixels, with random weights."""
    import torch

    from swinv2_mm.checkpoints.convert import export_state_dict
    from swinv2_mm.checkpoints.geometry import Geometry
    from swinv2_mm.models.position_bias import log_spaced_coords
    from swinv2_mm.sizes import VARIANTS

    size, w, side = VARIANTS['base'], 8, 256
    geometry = Geometry(
        size.embed_dims,
        size.depths,
        size.num_heads,
        in_channels=3,
        patch_size=4,
        mlp_ratio=4.0,
        qkv_bias=True,
        extra_norm_every=0,
    )
    C = size.embed_dims * 2 ** (len(size.depths) - 1)
    shapes = geometry.shapes() | {f'norm3.{leaf}': (C,) for leaf in ('weight', 'bias')}
    generator = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(shape, generator=generator) * 0.02 for key, shape in shapes.items()}
    state, _ = export_state_dict(weights, 'microsoft')
    table = log_spaced_coords((w, w), (w, w), torch.float32, torch.device('cpu'))[None]
    for i, depth in enumerate(size.depths):
        windows = (side // 4 // 2**i // w) ** 2
        for j in range(depth):
            block = f'layers.{i}.blocks.{j}.'
            state[f'{block}attn.relative_coords_table'] = table.clone()
            state[f'{block}attn.relative_position_index'] = torch.zeros(w * w, w * w, dtype=torch.int64)
            if j % 2 and windows > 1:
                state[f'{block}attn_mask'] = torch.zeros(windows, w * w, w * w)
    state |= {'head.weight': torch.randn(1000, C, generator=generator), 'head.bias': torch.zeros(1000)}
    torch.save({'model': state}, path)


def copy(src: Path, dst: Path) -> None:
    """A: read and write the file as it is."""
    import torch

    torch.save(torch.load(src, map_location='cpu', weights_only=True), dst)


def convert(src: Path, dst: Path) -> None:
    """B: what ``tools/convert_ckpt.py`` does between its arguments and its report."""
    from swinv2_mm.checkpoints.files import write_file
    from swinv2_mm.checkpoints.load import open_checkpoint

    loaded = open_checkpoint(str(src))
    write_file(loaded.conversion.weights, dst, loaded.meta())


def seconds_of(action: str, src: Path, dst: Path) -> float:
    """Time one run of :func:`copy` or :func:`convert`; imports, and what earlier runs left to write, do not count."""
    import safetensors.torch  # noqa: F401

    import swinv2_mm.checkpoints.load  # noqa: F401

    os.sync()
    start = time.perf_counter()
    {'copy': copy, 'convert': convert}[action](src, dst)
    seconds = time.perf_counter() - start
    dst.unlink()
    return seconds


def wait_until_idle(seconds: int = 60) -> None:
    """Wait until no other process is at work, this long at most."""
    for _ in range(seconds):
        before = _busy_and_idle()
        time.sleep(1)
        busy, idle = (now - then for now, then in zip(_busy_and_idle(), before, strict=True))
        if busy < 0.1 * (busy + idle):
            return


def _busy_and_idle() -> tuple[int, int]:
    user, nice, system, idle, waiting, *_ = map(int, Path('/proc/stat').read_text().split()[1:9])
    return user + nice + system, idle + waiting


def take_turns(src: Path, suffix: str, pairs: int) -> dict[str, list[float]]:
    """Time A and B in turn, each in a process of its own: in one, A would find the memory of its last run."""
    copied, converted = src.with_name('copied.pth'), src.with_name(f'converted{suffix}')
    runs = []
    for _ in range(pairs):
        wait_until_idle()
        runs.append((in_child('time', 'copy', src, copied), in_child('time', 'convert', src, converted)))
    return dict(copy=[a for a, _ in runs], convert=[b for _, b in runs])


def peak_of(src: Path, suffix: str | None) -> int:
    """Peak resident memory of this process in bytes, after the imports alone or after a conversion."""
    import safetensors.torch  # noqa: F401

    import swinv2_mm.checkpoints.load  # noqa: F401

    if suffix:
        convert(src, src.with_name(f'converted{suffix}'))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(task: str, *arguments: object) -> Any:
    """Run a task of :data:`_TASKS` in a process of its own."""
    child = subprocess.run(
        [sys.executable, __file__, '--child', task, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(child.stdout)


_TASKS = {
    'make': lambda src: make_file(Path(src)),
    'time': lambda action, src, dst: seconds_of(action, Path(src), Path(dst)),
    'peak': lambda src, suffix='': peak_of(Path(src), suffix),
    'about': lambda: about(safetensors='safetensors'),
}


def measure(folder: Path, pairs: int) -> Iterator[dict[str, Any]]:
    """The report after each kind of file that is written."""
    src = folder / 'swinv2_base.pth'
    in_child('make', src)
    size = src.stat().st_size
    found: dict[str, Any] = dict(about=in_child('about'), file_bytes=size, pairs=pairs, outputs={})
    for suffix in OUTPUTS:
        seconds = take_turns(src, suffix, pairs)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        peak = in_child('peak', src, suffix) - in_child('peak', src)
        found['outputs'][suffix] = dict(
            seconds=seconds,
            median_seconds=medians,
            ratio=medians['convert'] / medians['copy'],
            ratio_of_fastest=min(seconds['convert']) / min(seconds['copy']),
            peak_bytes=peak,
            peak_per_file=peak / size,
        )
        yield found


def show(found: dict[str, Any]) -> None:
    """Print the report as a table."""
    title = (
        f'A file of {found["file_bytes"] / 1e6:.0f} MB, medians of {found["pairs"]} pairs; goals: ratio < '
        f'{RATIO_GOAL}, memory < {MEMORY_GOAL} of the file'
    )
    columns = 'written as', 'load + save', 'convert', 'ratio', 'of the fastest', 'peak memory', 'of the file'
    table = new_table(title, *columns, left=('written as',))
    for suffix, row in found['outputs'].items():
        a, b = (row['median_seconds'][name] for name in ('copy', 'convert'))
        table.add_row(
            suffix,
            f'{a:.2f} s',
            f'{b:.2f} s',
            f'{row["ratio"]:.2f}',
            f'{row["ratio_of_fastest"]:.2f}',
            f'{row["peak_bytes"] / 1e6:.0f} MB',
            f'{row["peak_per_file"]:.2f}',
        )
    print_report(table, found, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', type=int, default=9, help='how often each is timed; default 9')
    parser.add_argument('--folder', help='where the files are written; default a temporary folder')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    parser.add_argument('--child', nargs='+', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        task, *arguments = args.child
        print(json.dumps(_TASKS[task](*arguments)))
        return
    with tempfile.TemporaryDirectory(prefix='swinv2_mm_', dir=args.folder) as folder:
        report(measure(Path(folder), args.pairs), show, args.json)


if __name__ == '__main__':
    main()
