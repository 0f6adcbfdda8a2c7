"""Check whether this machine can train, and say how to fix what is missing: ``python -m swinv2_mm.doctor``.

Every line of ``TABLE`` becomes a row of the report, also where a check fails or crashes: only the standard library is
imported before a check runs. An untested version is a warning; an error prevents training. The exit status is 1 if
there is an error.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

OK, WARNING, ERROR = 'ok', 'warning', 'error'
PYTHON = ((3, 10), (3, 12))  # the oldest and the newest that the tests run with


class Row(NamedTuple):
    """One line of the report; ``usable`` is False for a package that is missing or broken."""

    found: str
    status: str = OK
    remedy: str = ''
    usable: bool = True


def version_of(distribution: str) -> str | None:
    """Version of an installed distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def in_one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {(str(error).strip().splitlines() or ["no message"])[0]}'


def import_problem(module: str) -> str | None:
    """Import a module; return the error in one line, or None."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            importlib.import_module(module)
    except (Exception, SystemExit) as error:
        return in_one_line(error)
    return None


def install(command: str) -> str:
    """The command that installs something; an environment made by ``make setup`` is made again instead."""
    return 'rm -rf .venv && make setup' if Path(sys.prefix, 'swinv2_mm.json').is_file() else command


# --- how a row is checked --------------------------------------------------------------------------------------------


def package(name: str, rows: dict[str, Row]) -> Row:
    """Is a package installed, does it import, is it the tested version?"""
    line, found = TABLE[name], version_of(name)
    # A framework's models need mmcv's operations, and could crash this process where those are broken.
    deep = rows.get(OPERATIONS, Row('')).status == OK
    modules = (line.modules or (name,))[: None if deep else 1]
    problem = next(filter(None, map(import_problem, modules)), None)
    if problem:
        hints = [hint for names, text, hint in HINTS if name in names and re.search(text, problem)] if found else []
        remedy = hints[0] if hints else install('pip install ' + shlex.quote(f'{name}=={line.tested}'))
        why = f' ({line.why})' if line.why else ''
        return Row(f'{found}, does not import: {problem}' if found else 'missing', line.bad, remedy + why, False)
    if found is None and (headless := version_of(f'{name}-headless')):
        return Row(f'{headless} (headless)', WARNING, f'works; mmengine requires {name} by name')
    if found is None:  # a fork by another name, or a checkout on the path
        found = getattr(sys.modules[modules[0].split('.')[0]], '__version__', 'version unknown')
    if found.split('+')[0] not in (line.tested, *line.also):
        return Row(found, WARNING, 'not tested; if anything fails, suspect this first')
    return Row(found)


def setuptools(name: str, rows: dict[str, Row]) -> Row:
    """mmengine imports pkg_resources, which newer ones lack; its successor does not."""
    return Row(version_of(name) or 'not needed') if version_of('onedl-mmengine') else package(name, rows)


def python(*_: object) -> Row:
    found, (low, high) = '.'.join(map(str, sys.version_info[:3])), PYTHON
    if sys.version_info[:2] < low:
        return Row(found, ERROR, 'install Python 3.11 and make a new environment with it')
    return Row(found, WARNING, 'not tested') if sys.version_info[:2] > high else Row(found)


OPERATIONS_RUN = """
import torch, mmcv._ext
from mmcv.ops import get_compiling_cuda_version, nms, roi_align
gpu = torch.cuda.is_available()
print(get_compiling_cuda_version(), gpu, flush=True)
box = torch.tensor([[0.0, 0.0, 4.0, 4.0]], device='cuda' if gpu else 'cpu')
nms(box, box.new_ones(1), 0.5)
roi_align(box.new_ones(1, 1, 8, 8), torch.nn.functional.pad(box, (1, 0)), 2).sum().item()
"""


def load_operations() -> subprocess.CompletedProcess:
    """Run two of mmcv's operations, on the GPU if there is one, in another process, which a wrong build may crash."""
    command = [sys.executable, '-W', 'ignore', '-c', OPERATIONS_RUN]
    return subprocess.run(command, capture_output=True, text=True, errors='replace')


def operations(*_: object) -> Row:
    build = install(
        'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir --no-deps --force-reinstall --no-binary mmcv '
        f'mmcv=={TABLE["mmcv"].tested}, with a C++ compiler (apt-get install build-essential python3-dev)'
    )
    if version_of('mmcv') is None and version_of('mmcv-lite'):
        return Row('mmcv-lite has no compiled operations', ERROR, f'pip uninstall mmcv-lite, then {build}')
    done = load_operations()
    if done.stdout.strip().endswith('not available True'):
        return Row('loads, without CUDA, and there is a GPU', ERROR, build)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        problem = lines[-1] if lines else f'crashed with status {done.returncode}'
        if not lines or re.search('undefined symbol|libtorch|libc10', problem):
            problem = f'compiled for another torch than {version_of("torch")}: {problem}'
        elif "No module named 'mmcv" in problem:
            problem = 'not compiled' if version_of('mmcv') else 'missing'
        return Row(problem, ERROR, build)
    return Row('nms and RoIAlign run' + (' on the GPU' if done.stdout.strip().endswith('True') else ''))


def gpu(*_: object) -> Row:
    import torch

    if torch.cuda.is_available():
        from swinv2_mm.compat import multiplies_in_tf32
        from swinv2_mm.models.kernels.gpu.usable import why_not_by_default

        capability = torch.cuda.get_device_capability()
        unused = capability >= (8, 0) and not multiplies_in_tf32()
        tf32 = '; float32 is multiplied without TF32 unless a tool gets --tf32' if unused else ''
        reason = why_not_by_default(capability, (8, 8))
        attention = f"; torch's kernel computes attention: {reason}" if reason else ''
        name = f'{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}'
        return Row(name + tf32 + attention)
    if shutil.which('nvidia-smi') and subprocess.run(['nvidia-smi', '-L'], capture_output=True).returncode == 0:
        remedy = f'the driver is too old for CUDA {torch.version.cuda}, or CUDA_VISIBLE_DEVICES hides the GPU'
        if torch.version.cuda is None:
            remedy = 'torch is a CPU build: see https://pytorch.org/get-started/locally, then compile mmcv again'
        return Row('present, but torch cannot use it', WARNING, remedy)
    return Row('none: training runs on the CPU')


def kernels(*_: object) -> Row:
    """Which code computes attention, GELU and norms on a CPU, and why; compiled, it is up to three times as fast."""
    import torch

    from swinv2_mm.models.kernels import cpp

    sets = cpp.instruction_sets()
    if not sets:
        capability = torch.backends.cpu.get_cpu_capability()
        return Row(f"torch's operations: ours need AVX2 or NEON, torch reports {capability}")
    compiled = next((name for name in sets if cpp.compiled_for(name) is not None), None)
    if compiled:
        why = 'the widest that torch uses here' if compiled == sets[0] else f'{sets[0]} was not compiled'
        return Row(f'C++ for {compiled}, {why}')
    again = install('install swinv2_mm again, --no-deps --force-reinstall')
    remedy = f'install a C++ compiler, then {again}: it is two to three times as fast'
    return Row(f"torch's operations: those for {sets[0]} were not compiled", OK, remedy)


def model(*_: object) -> Row:
    """Build a tiny backbone the way a config does, and run it."""
    import torch
    from mmengine.registry import MODELS

    sizes = dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)
    with torch.no_grad():
        maps = MODELS.build(dict(type='swinv2_mm.SwinTransformerV2', **sizes)).eval()(torch.rand(1, 3, 48, 64))
    if not all(torch.isfinite(level).all() for level in maps):
        return Row('the forward pass is not finite', ERROR, 'please report it, with this table')
    return Row(f'{version_of("swinv2_mm") or "not installed"}, builds and runs')


# --- the rows, in the order in which to fix them ---------------------------------------------------------------------


class Line(NamedTuple):
    """What is checked, and how."""

    tested: str = ''  # as in constraints.txt, which an installed package does not carry
    bad: str = ERROR  # the status if it is missing or broken
    why: str = ''  # what does not work without it
    modules: tuple[str, ...] = ()  # if not the name itself; a second one is skipped where mmcv's operations do not load
    check: Callable[[str, dict[str, Row]], Row] = package  # takes the item and the rows before it
    also: tuple[str, ...] = ()  # versions that tests/environments.py runs with


OPERATIONS = 'mmcv._ext'
FRAMEWORKS = ('mmdet', 'mmsegmentation')
DETECTION, SEGMENTATION = 'no detection without it', 'no segmentation without it'
TABLE = {
    'Python': Line('{}.{} to {}.{}'.format(*PYTHON[0], *PYTHON[1]), check=python),
    'torch': Line('2.13.0', also=('2.1.2', '2.4.1')),
    'numpy': Line('2.2.6', also=('1.26.4', '2.4.6')),
    'setuptools': Line('80.10.2', modules=('setuptools', 'pkg_resources'), check=setuptools),
    'opencv-python': Line('4.14.0.94', modules=('cv2',)),
    'mmengine': Line('0.10.7', also=('0.10.12',)),
    'mmcv': Line('2.1.0', also=('2.3.6',)),
    OPERATIONS: Line('for torch 2.13.0', check=operations),
    'mmdet': Line('3.3.0', WARNING, DETECTION, ('mmdet', 'mmdet.models'), also=('3.5.1',)),
    'pycocotools': Line('2.0.11', WARNING, DETECTION),
    'ftfy': Line('6.3.1', WARNING, SEGMENTATION),
    'regex': Line('2026.9.29', WARNING, SEGMENTATION),
    'mmsegmentation': Line('1.2.2', WARNING, SEGMENTATION, ('mmseg', 'mmseg.models'), also=('1.4.2',)),
    'safetensors': Line('0.8.0'),
    'rich': Line('15.0.0', WARNING),
    'GPU': Line('none needed', WARNING, check=gpu),
    'kernels on CPU': Line('', WARNING, check=kernels),
    'swinv2_mm': Line('', check=model),
}
# Packages, what the error of their import says, and what to do about it; the first that matches counts.
MMCV = install(f'pip install mmcv=={TABLE["mmcv"].tested}')
HINTS = (
    (('setuptools',), 'pkg_resources', "pip install 'setuptools<81' (mmengine imports pkg_resources, gone in 82)"),
    (('opencv-python',), 'libGL|libgthread|libglib', 'apt-get install libgl1 libglib2.0-0'),
    (('mmsegmentation',), "'(ftfy|regex)'", 'install ftfy and regex first'),
    (FRAMEWORKS, '', f'it insists on mmcv<2.2.0 and mmengine<1.0: {MMCV}'),
)


def check(name: str, rows: dict[str, Row]) -> Row:
    """Run one check; a check that raises is a row like any other."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return TABLE[name].check(name, rows)
    except (Exception, SystemExit) as error:
        return Row(in_one_line(error), TABLE[name].bad, 'fix the rows above first', False)


def examine() -> dict[str, Row]:
    """All rows. Without both detection and segmentation nothing can be trained: then both are errors."""
    rows: dict[str, Row] = {}
    for name in TABLE:
        rows[name] = check(name, rows)
    if not any(rows[name].usable for name in FRAMEWORKS):
        rows |= {name: rows[name]._replace(status=ERROR) for name in FRAMEWORKS}
    return rows


def report(rows: dict[str, Row]) -> str:
    """The rows as plain text, to print without any package and to paste into an issue, and a verdict."""
    lines = []
    for name, row in rows.items():
        tested = ', '.join((TABLE[name].tested, *TABLE[name].also))
        tested = f'  (tested: {tested})' if tested else ''
        lines.append(f'{row.status:8} {name:15} {row.found}{tested}')
        lines += [f'{"":8} -> {row.remedy}'] if row.remedy else []
    errors, warned = (sum(row.status == status for row in rows.values()) for status in (ERROR, WARNING))
    ready = 'ready to train' + (f'; warnings: {warned}' if warned else '')
    return '\n'.join((*lines, f'not ready to train: {errors} to fix' if errors else ready))


def main() -> int:
    rows = examine()
    print(report(rows))
    return int(any(row.status == ERROR for row in rows.values()))


if __name__ == '__main__':
    sys.exit(main())
