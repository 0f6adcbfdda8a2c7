"""``python -m swinv2_mm.doctor``: is this machine ready to train, and if not, what is to be done?

Every check ends in a row, whatever is missing or broken. A version other than the tested one is a warning; an error is
what keeps training from working. The exit status is 1 if there is an error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

OK, WARNING, ERROR = 'ok', 'warning', 'error'

# The combination that the tests run with: constraints.txt, which an installed package does not carry.
TESTED = {
    'torch': '2.13.0',
    'numpy': '2.2.6',
    'setuptools': '80.10.2',
    'mmengine': '0.10.7',
    'mmcv': '2.1.0',
    'mmdet': '3.3.0',
    'mmsegmentation': '1.2.2',
    'ftfy': '6.3.1',
    'regex': '2026.9.29',
    'opencv-python': '4.14.0.94',
    'pycocotools': '2.0.11',
    'safetensors': '0.8.0',
    'rich': '15.0.0',
}
TESTED_PYTHON = ((3, 10), (3, 12))
MMCV_BUILD = (
    'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary mmcv '
    f'mmcv=={TESTED["mmcv"]}'
)


class Row(NamedTuple):
    """What was found about one thing, and what to do about it."""

    item: str
    found: str
    tested: str = ''
    status: str = OK
    remedy: str = ''
    usable: bool = True


# --- looking ---------------------------------------------------------------------------------------------------------


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def import_problem(module: str) -> str | None:
    """Why ``module`` does not import, in one line; None if it does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            importlib.import_module(module)
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines()
        return f'{type(error).__name__}: {lines[0] if lines else "no message"}'
    return None


def made_by_setup() -> bool:
    """Whether this Python is the one of the environment that ``make setup`` makes."""
    return Path(sys.prefix, 'swinv2_mm.json').is_file()


def install(requirement: str) -> str:
    """How to get a package: through ``make setup`` in its environment, with pip elsewhere."""
    return 'rm -rf .venv && make setup' if made_by_setup() else f'pip install {shlex.quote(requirement)}'


# --- checks ----------------------------------------------------------------------------------------------------------


def check_python() -> Row:
    low, high = TESTED_PYTHON
    tested = f'{low[0]}.{low[1]} to {high[0]}.{high[1]}'
    found = '.'.join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < low:
        return Row('Python', found, tested, ERROR, 'install Python 3.11 and make a new environment with it')
    if sys.version_info[:2] > high:
        return Row('Python', found, tested, WARNING, 'not tested')
    return Row('Python', found, tested)


def check_package(
    distribution: str, module: str | None = None, absent: str = ERROR, why: str = '', broken: str = ''
) -> Row:
    """Is a package there, does it import, and is it the tested version?

    Args:
        distribution: Its name for pip.
        module: Its name for ``import``.
        absent: Status if it is missing or does not import.
        why: What does not work without it.
        broken: What to do if it is there and does not import.
    """
    tested, found = TESTED[distribution], version_of(distribution)
    module = module or distribution
    needed = f' ({why})' if why else ''
    problem = import_problem(module)
    if found is None and problem:
        return Row(distribution, 'missing', tested, absent, install(f'{distribution}=={tested}') + needed, False)
    if problem:
        remedy = broken or install(f'{distribution}=={tested}')
        return Row(distribution, f'{found or "?"}, does not import: {problem}', tested, absent, remedy + needed, False)
    if found is None:  # a fork by another name, or a checkout on the path
        found = getattr(sys.modules[module.split('.')[0]], '__version__', 'version unknown')
    if found.split('+')[0] != tested:
        return Row(distribution, found, tested, WARNING, 'not tested; should anything fail, this is the first suspect')
    return Row(distribution, found, tested)


def check_pkg_resources() -> Row:
    row = check_package('setuptools')
    problem = import_problem('pkg_resources')
    if problem is None:
        return row._replace(item='setuptools, pkg_resources')
    remedy = "pip install 'setuptools<81' (mmengine imports pkg_resources, which setuptools 82 removed)"
    return Row('setuptools, pkg_resources', f'{row.found}; {problem}', row.tested, ERROR, remedy)


def check_opencv() -> Row:
    """OpenCV has two distributions with one module."""
    item, tested = 'opencv-python', TESTED['opencv-python']
    found = version_of('opencv-python')
    headless = version_of('opencv-python-headless')
    problem = import_problem('cv2')
    if problem and any(name in problem for name in ('libGL', 'libgthread', 'libglib')):
        remedy = 'apt-get install libgl1 libglib2.0-0'
        return Row(item, f'{found}, does not import: {problem}', tested, ERROR, remedy)
    if found is None and headless and problem is None:
        return Row(item, f'{headless} (headless)', tested, WARNING, 'works; mmengine requires opencv-python by name')
    return check_package('opencv-python', 'cv2')


EXT_PROBE = """
import torch, mmcv._ext
from mmcv.ops import get_compiling_cuda_version
print('CUDA', get_compiling_cuda_version(), torch.cuda.is_available())
"""


def run_ext_probe() -> subprocess.CompletedProcess:
    """Load mmcv's compiled operations in a process of their own: compiled for another torch, they may crash it."""
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', EXT_PROBE], capture_output=True, text=True, errors='replace'
    )


def check_ext() -> Row:
    item, tested = 'mmcv._ext', f'for torch {TESTED["torch"]}'
    build = 'rm -rf .venv && make setup' if made_by_setup() else MMCV_BUILD
    if version_of('mmcv') is None and version_of('mmcv-lite'):
        remedy = f'pip uninstall mmcv-lite, then {build}'
        return Row(item, 'mmcv-lite has no compiled operations', tested, ERROR, remedy)
    done = run_ext_probe()
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        problem = lines[-1] if lines else f'crashed with status {done.returncode}'
        if 'undefined symbol' in problem or 'libtorch' in problem or 'libc10' in problem or not lines:
            problem = f'compiled for another torch than {version_of("torch")}: {problem}'
        elif "No module named 'mmcv" in problem:
            problem = 'not compiled' if version_of('mmcv') else 'missing'
        return Row(item, problem, tested, ERROR, build)
    cuda, gpu = (done.stdout.strip().splitlines() or ['CUDA ? False'])[-1].split()[-2:]
    if gpu == 'True' and cuda == 'available':  # the end of 'not available'
        return Row(item, 'loads, without CUDA, and there is a GPU', tested, ERROR, build)
    return Row(item, 'loads', tested)


def check_mmdet(deep: bool) -> Row:
    """MMDetection; with ``deep`` its models, too, which need mmcv's compiled operations."""
    module = 'mmdet.models' if deep else 'mmdet'
    pins = f'it insists on mmcv<2.2.0 and mmengine<1.0: {install("mmcv==" + TESTED["mmcv"])}'
    return check_package('mmdet', module, WARNING, 'no detection without it', pins)


def check_mmseg(deep: bool) -> list[Row]:
    """MMSegmentation, and the two packages that it imports without requiring them."""
    extra = [check_package(name, absent=WARNING, why='no segmentation without it') for name in ('ftfy', 'regex')]
    module = 'mmseg.models' if deep else 'mmseg'
    pins = f'it insists on mmcv<2.2.0 and mmengine<1.0: {install("mmcv==" + TESTED["mmcv"])}'
    absent = [row.item for row in extra if row.found == 'missing']
    if absent:
        pins = f'install {" and ".join(absent)} first'
    return [check_package('mmsegmentation', module, WARNING, 'no segmentation without it', pins), *extra]


def check_gpu() -> Row:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Row('GPU', f'{len(names)} x {names[0]}, CUDA {torch.version.cuda}', 'none needed')
    if shutil.which('nvidia-smi') and subprocess.run(['nvidia-smi', '-L'], capture_output=True).returncode == 0:
        if torch.version.cuda is None:
            remedy = 'torch is a CPU build: see https://pytorch.org/get-started/locally, then compile mmcv again'
        else:
            remedy = f'the driver is too old for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides the GPU'
        return Row('GPU', 'there, and torch cannot use it', 'none needed', WARNING, remedy)
    return Row('GPU', 'none: training runs on the CPU', 'none needed')


def check_compiler(needed: bool) -> Row:
    """A C++ compiler is needed only to compile mmcv; ``needed`` says that this is still to be done."""
    compiler = shlex.split(os.environ.get('CXX', '')) or ['c++']
    if shutil.which(compiler[0]) is None:
        remedy = 'apt-get install build-essential python3-dev'
        return Row('C++ compiler', 'none', 'gcc 12', WARNING if needed else OK, remedy if needed else '')
    said = subprocess.run([*compiler, '-dumpfullversion', '-dumpversion'], capture_output=True, text=True).stdout
    return Row('C++ compiler', f'{compiler[0]} {said.strip()}', 'gcc 12')


def check_model() -> Row:
    """Build a tiny backbone the way a config does, and run it."""
    import torch
    from mmengine.registry import MODELS

    config = dict(
        type='swinv2_mm.SwinTransformerV2',
        embed_dims=16,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
    )
    with torch.no_grad():
        maps = MODELS.build(config).eval()(torch.rand(1, 3, 48, 64))
    if not all(torch.isfinite(level).all() for level in maps):
        return Row('swinv2_mm', 'the forward pass is not finite', '', ERROR, 'please report it, with this table')
    return Row('swinv2_mm', f'{version_of("swinv2_mm") or "not installed"}, builds and runs')


def check_attention() -> Row:
    """Which code computes attention, GELU and norms on a CPU, and why: compiled, it is up to three times as fast."""
    import torch

    from swinv2_mm.models.kernels import cpp

    sets = cpp.instruction_sets()
    if not sets:
        kind = torch.backends.cpu.get_cpu_capability()
        return Row('kernels on CPU', f"torch's operations: ours need AVX2 or NEON, torch says {kind}")
    compiled = next((name for name in sets if cpp.compiled_for(name) is not None), None)
    if compiled:
        why = 'the widest that torch uses here' if compiled == sets[0] else f'{sets[0]} was not compiled'
        return Row('kernels on CPU', f'C++ for {compiled}, {why}')
    again = 'rm -rf .venv && make setup' if made_by_setup() else 'install swinv2_mm again, --no-deps --force-reinstall'
    remedy = f'install a C++ compiler, then {again}: it is two to three times as fast'
    return Row('kernels on CPU', f"torch's operations: those for {sets[0]} were not compiled", '', OK, remedy)


# --- all together ----------------------------------------------------------------------------------------------------


def guarded(item: str, check: Callable[..., Row | list[Row]], *args, status: str = ERROR, **kwargs) -> list[Row]:
    """Run a check; one that raises is a row like any other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            rows = check(*args, **kwargs)
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines()
        found = f'{type(error).__name__}: {lines[0] if lines else "no message"}'
        return [Row(item, found, TESTED.get(item, ''), status, 'mend the rows above first', False)]
    return rows if isinstance(rows, list) else [rows]


def judge(rows: Sequence[Row]) -> list[Row]:
    """Without detection and without segmentation nothing can be trained: then both are errors."""
    unusable = [row for row in rows if row.item in ('mmdet', 'mmsegmentation') and not row.usable]
    if len(unusable) < 2:
        return list(rows)
    return [row._replace(status=ERROR) if row in unusable else row for row in rows]


def examine() -> list[Row]:
    """All rows, in the order in which they are to be mended."""
    rows = guarded('Python', check_python)
    rows += guarded('torch', check_package, 'torch')
    rows += guarded('numpy', check_package, 'numpy')
    rows += guarded('setuptools', check_pkg_resources)
    rows += guarded('opencv-python', check_opencv)
    rows += guarded('mmengine', check_package, 'mmengine')
    rows += guarded('mmcv', check_package, 'mmcv')
    rows += guarded('mmcv._ext', check_ext)
    loads = rows[-1].status == OK
    rows += guarded('mmdet', check_mmdet, loads, status=WARNING)
    rows += guarded('pycocotools', check_package, 'pycocotools', absent=WARNING, why='no detection without it')
    rows += guarded('mmsegmentation', check_mmseg, loads, status=WARNING)
    rows += guarded('safetensors', check_package, 'safetensors')
    rows += guarded('rich', check_package, 'rich', absent=WARNING)
    rows += guarded('GPU', check_gpu, status=WARNING)
    rows += guarded('C++ compiler', check_compiler, not loads, status=WARNING)
    rows += guarded('kernels on CPU', check_attention, status=WARNING)
    rows += guarded('swinv2_mm', check_model)
    return judge(rows)


def verdict(rows: Sequence[Row]) -> str:
    """The closing line."""
    counts = {status: sum(row.status == status for row in rows) for status in (WARNING, ERROR)}
    if counts[ERROR]:
        return f'not ready to train: {counts[ERROR]} to mend'
    return 'ready to train' + (f'; warnings: {counts[WARNING]}' if counts[WARNING] else '')


def show(rows: Sequence[Row]) -> None:
    """Print the table, plainly where rich is missing."""
    try:
        from rich import box
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for row in rows:
            print(f'{row.status:8}{row.item:26}{row.found}  (tested: {row.tested or "-"})')
            if row.remedy:
                print(f'{"":8}-> {row.remedy}')
        return
    colours = {OK: 'green', WARNING: 'yellow', ERROR: 'bold red'}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ('item', 'found', 'tested with', '', 'to do'):
        table.add_column(title, overflow='fold', no_wrap=title not in ('found', 'to do'))
    for row in rows:
        status = f'[{colours[row.status]}]{row.status}[/]'
        table.add_row(escape(row.item), escape(row.found), escape(row.tested), status, escape(row.remedy))
    Console().print(table)


def main() -> int:
    rows = examine()
    show(rows)
    print(verdict(rows))
    return int(any(row.status == ERROR for row in rows))


if __name__ == '__main__':
    sys.exit(main())
