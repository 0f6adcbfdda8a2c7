"""Build mmcv for the installed torch: its flags, its cache key, and the check of its compiled operations."""

import json
import os
import re
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from environment import machine, precompiled
from environment.machine import GIB, SetupError
from environment.progress import BuildProgress, roughly
from environment.uv import Uv, note_of

# CPU seconds of one file (gcc 12, a 2.6 GHz core) and the number of files: only for the estimate shown up front.
FILES, SECONDS_PER_FILE, CUDA_FACTOR = 77, 4, 8
# Memory of one compiler; nvcc's front end needs as much.
GIB_PER_JOB, BUILD_GIB = 1.5, 2


class Torch(NamedTuple):
    """The torch that mmcv is compiled for."""

    version: str  # with its build: 2.13.0+cpu, 2.13.0+cu130
    cuda: str  # its CUDA version; '' for a CPU build
    compile_cuda: bool  # whether mmcv's GPU operations are to be compiled
    archs: str  # GPU architectures to compile for; '' without CUDA
    home: str  # CUDA toolkit that the build would use; '' if none


PROBE_TORCH = """
import json, os, torch
from torch.utils.cpp_extension import CUDA_HOME
gpu = torch.cuda.is_available()
found = sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}) if gpu else []
cuda = gpu or (os.environ.get('FORCE_CUDA') == '1' and torch.version.cuda is not None)
archs = (os.environ.get('TORCH_CUDA_ARCH_LIST') or ';'.join(found) or 'all') if cuda else ''
print('PROBE' + json.dumps([torch.__version__, torch.version.cuda or '', cuda, archs, CUDA_HOME or '']))
"""


def probe_torch(python: Path) -> Torch:
    """Ask the environment's torch. Raise if it does not import."""
    done = subprocess.run(
        [python, '-c', PROBE_TORCH], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
    )
    found = re.search('^PROBE(.*)$', done.stdout, re.M)
    if not found:
        last = (done.stdout.strip().splitlines() or ['no output'])[-1]
        raise SetupError(f'torch does not import: {last}\nStart afresh: rm -rf .venv && make setup')
    return Torch(*json.loads(found.group(1)))


def cache_key(torch: Torch) -> list[str]:
    """Options that add the GPUs to uv's cache key of mmcv, which has the versions of torch and Python already."""
    return ['--config-settings-package', f'mmcv:gpu={torch.archs}'] if torch.compile_cuda else []


def is_cached(cache: Path, python_tag: str) -> bool:
    """Whether uv's cache holds a compiled mmcv for this Python, for whichever torch."""
    source = f'mmcv/*/*/*/mmcv-*-{python_tag}-*.whl'
    return any(any(cache.glob(f'sdists-*/{index}/{source}')) for index in ('pypi', 'index/*'))


def jobs(env: dict[str, str]) -> int:
    """Number of parallel compilers: one per core, but no more than the memory allows."""
    if env.get('MAX_JOBS', '').isdigit():
        return int(env['MAX_JOBS'])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        free = int(re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text()).group(1)) * 1024
    except (OSError, AttributeError):
        return cores
    return max(1, min(cores, int(free / GIB / GIB_PER_JOB)))


def build_guess(cuda: bool, cores: int) -> float:
    """Rough number of seconds that compiling mmcv takes."""
    return FILES * SECONDS_PER_FILE * (CUDA_FACTOR if cuda else 1) / cores


def build_env(env: dict[str, str], temp: str, include: Sequence[str] = ()) -> dict[str, str]:
    """The environment variables that mmcv is compiled with.

    Debug symbols take half of the time, and Python compiles extensions with ``-g``. CPPFLAGS adds to Python's flags; a
    CFLAGS variable would replace them, ``-O3`` included. Objects go to a fresh folder: uv compiles every build of a
    source in the same place, where ninja would find the objects of another torch up to date.

    Args:
        env: This process's environment.
        temp: Empty folder for the objects.
        include: Flags of the precompiled header.
    """
    Path(temp, 'setup.cfg').write_text(f'[build]\nbuild_base = {temp}/build\n')
    return {
        'DIST_EXTRA_CONFIG': f'{temp}/setup.cfg',
        'CPPFLAGS': ' '.join([env.get('CPPFLAGS', ''), '-g0', *include]).strip(),
        'MAX_JOBS': str(jobs(env)),
        'PYTHONUNBUFFERED': '1',
        'RUST_LOG': 'uv_build_frontend=debug',  # uv then prints the build's output
    }


def check_tools(torch: Torch) -> None:
    """Raise if something that compiling needs is missing."""
    machine.check_compiler(machine.compiler_command(os.environ), sysconfig.get_path('include'))
    if torch.compile_cuda:
        machine.check_cuda_compiler(torch.version, torch.cuda, machine.nvcc_version(torch.home))
    temp = Path(tempfile.gettempdir())
    remedy = 'Free some space, or name another place: TMPDIR=/some/where make setup'
    machine.check_disk(machine.free_space(temp), BUILD_GIB, temp, 'Compiling mmcv', remedy)


CHECK_MMCV = """
import sys
try:
    import cv2, mmengine, torch, mmcv
except Exception as error:
    sys.exit('BESIDE ' + str(error))
from mmcv.ops import get_compiling_cuda_version, nms
keep = nms(torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9]]), torch.tensor([0.9, 0.8]), 0.5)[1]
assert keep.tolist() == [0], keep
assert not torch.cuda.is_available() or get_compiling_cuda_version() != 'not available', 'compiled without CUDA'
"""


def problem(python: Path) -> str | None:
    """Why the installed mmcv's compiled operations do not run; None if they do.

    Raises for a package beside mmcv that does not import: compiling again would not help.
    """
    done = subprocess.run(
        [python, '-W', 'ignore', '-c', CHECK_MMCV], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode == 0:
        return None
    last = (done.stdout.strip().splitlines() or ['it crashed'])[-1]
    if not last.startswith('BESIDE '):
        return last
    last = last[len('BESIDE ') :]
    if re.search(r'libGL|libgthread|libglib', last):
        remedy = 'On Debian and Ubuntu: apt-get install libgl1 libglib2.0-0'
        raise SetupError(f'OpenCV needs system libraries ({last}).\n{remedy}')
    raise SetupError(f'{last}\nStart afresh: rm -rf .venv && make setup')


def watch(torch: Torch, cores: int, say: Callable[[str], None], start: Callable[[], object]) -> Callable[[str], str]:
    """Follow a run of uv: when it begins to build mmcv, check the tools and call ``start``; then tell the time left."""
    progress, began = BuildProgress(build_guess(torch.compile_cuda, cores)), 0.0

    def note(line: str) -> str:
        nonlocal began
        if re.match(r'\s*Building mmcv\b', line):
            check_tools(torch)
            start()
            began = time.monotonic()
            say(f'compiling it, once: about {roughly(progress.guess)} on {cores} core{"s" * (cores > 1)}')
        if not began:
            return note_of(line)
        progress.feed(line, time.monotonic() - began)
        return progress.text(time.monotonic() - began)

    return note


def run_build(torch: Torch, uv: Uv, arguments: Sequence[str]) -> str:
    """Let uv install with these arguments, and help it if it compiles mmcv. Return its output."""
    compiler, environment = machine.compiler_command(os.environ), dict(os.environ)
    with tempfile.TemporaryDirectory(prefix='swinv2_mm-') as temp:
        plain = build_env(environment, temp)
        env = build_env(environment, temp, precompiled.include_flags(Path(temp), compiler))
        helpers = []

        def start() -> None:
            flags = precompiled.flags_of(uv.python, {**environment, **plain})
            helpers.append(precompiled.precompile(Path(temp), compiler, flags))

        try:
            return uv.install(*arguments, env=env, note=watch(torch, int(env['MAX_JOBS']), uv.screen.say, start))
        finally:
            for helper in helpers:
                if helper.poll() is None:
                    os.killpg(helper.pid, signal.SIGTERM)
                helper.wait()


def install(torch: Torch, reinstall: bool, uv: Uv) -> None:
    """Install mmcv for this torch: uv takes the build from its cache, or compiles it.

    A cached build that does not run (another libc, a damaged file) is removed and compiled again, once.

    Args:
        torch: The installed torch.
        reinstall: Replace an installed mmcv, which may have been compiled for another torch.
        uv: Runs uv.
    """
    for attempt in range(2):
        if reinstall or attempt:
            uv.uninstall('mmcv')  # uv's --reinstall would look for a newer source, and compile it again
        said = run_build(torch, uv, [*cache_key(torch), 'torch', 'mmcv'])
        wrong = problem(uv.python)
        if wrong is None:
            return
        if 'Building mmcv' in said or attempt:
            break
        uv.screen.say(f'the cached mmcv does not run here ({wrong})')
        uv.forget('mmcv')
    raise SetupError(f'mmcv was compiled and does not run: {wrong}\nThe output of the build is in {uv.log}')
