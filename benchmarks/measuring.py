"""What the benchmarks share: peak memory, hardware and versions, and a report as a table and a JSON file.

Nothing imports torch before it is needed: benchmarks/convert.py has to stay small.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

GIB = 2**30


class PeakMemory:
    """Bytes of resident memory that this process takes at its peak, above what it takes now.

    Not ``ru_maxrss``: a child starts with its parent's.
    """

    def __init__(self) -> None:
        Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM to the resident size
        self.before = self._high_water()

    def above(self) -> int:
        return self._high_water() - self.before

    @staticmethod
    def _high_water() -> int:
        line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024


def seconds(function: Callable[[], Any], device: str, runs: int = 1) -> float:
    """A call's time on the clock, with all that Python takes to launch it: the mean of so many in a row."""
    import torch

    wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(runs):
        function()
    wait()
    return (time.perf_counter() - start) / runs


class Deadline:
    """Whether so many minutes are over; None for never."""

    def __init__(self, minutes: float | None) -> None:
        self._end = float('inf') if minutes is None else time.monotonic() + 60 * minutes

    def over(self) -> bool:
        return time.monotonic() > self._end


def write(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f'{path.name}.part').write_text(text)
    path.with_name(f'{path.name}.part').replace(path)


def report(
    growing: Iterator[dict[str, Any]],
    show: Callable[[dict], None],
    json_file: str | None,
    plot: Callable[[dict, Path], None] | None = None,
    plot_file: str | None = None,
) -> None:
    """Write a report each time that it has grown, so that a run that is stopped leaves what it measured; then show it.

    Args:
        growing: The report after each measurement.
        show, plot: What prints it, and what draws it into a file.
        json_file, plot_file: Where to; None for nowhere.
    """
    command = ' '.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])
    for found in growing:
        found = dict(command=command, **found)
        if json_file:
            write(Path(json_file), json.dumps(found, indent=1) + '\n')
    show(found)
    if plot_file:
        plot(found, Path(plot_file))


def new_table(title: str, *columns: str, left: tuple[str, ...] = ('',)) -> Table:
    """A table whose columns are numbers, but for those on the ``left``."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left')
    for column in columns:
        table.add_column(column, justify='left' if column in left else 'right')
    return table


def print_report(table: Table, found: dict[str, Any], width: int) -> None:
    """Print a table that needs so many columns of the screen, and under it where and how it was measured."""
    from rich.console import Console

    console = Console(highlight=False)
    console.width = max(console.width, width)
    console.print(table)
    console.print(', '.join(f'{name} {value}' for name, value in found['about'].items()))
    if 'command' in found:
        console.print(found['command'])


def kind_of_processor() -> str:
    """What decides which code is fast here: the widest vectors that torch uses, and whether there is bfloat16."""
    import torch

    from swinv2_mm.models.kernels.choose import has_arithmetic
    from swinv2_mm.models.kernels.cpp import instruction_sets

    vectors = {'avx512': 'AVX-512', 'avx2': 'AVX2', 'neon': 'NEON'}[instruction_sets()[0]] if instruction_sets() else ''
    return f'{vectors or torch.backends.cpu.get_cpu_capability()}, bfloat16: {has_arithmetic(torch.bfloat16)}'


def about(**packages: str) -> dict[str, Any]:
    """Hardware and versions, also of ``packages``: the distributions behind some names."""
    import torch

    import swinv2_mm

    lines = Path('/proc/cpuinfo').read_text().splitlines()
    models = (line.partition(':')[2].strip() for line in lines if line.startswith('model name'))
    found = dict(
        cpu=next(models, platform.machine()),
        kind=kind_of_processor(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        torch=torch.__version__,
        swinv2_mm=swinv2_mm.__version__,
    )
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
        found['gpu_capability'] = '{}.{}'.format(*torch.cuda.get_device_capability())
        found['cuda'] = torch.version.cuda
    for name, package in packages.items():
        try:
            found[name] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[name] = 'a checkout'
    return found
