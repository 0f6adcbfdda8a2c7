"""Machine checks: say what is missing, and how to get it, before anything is downloaded."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

GIB = 2**30
APT_COMPILER = 'On Debian and Ubuntu: apt-get install build-essential python3-dev'


class SetupError(SystemExit):
    """Something is missing on this machine. Uncaught, it prints its message and exits with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(f'\nsetup stopped. {message}')


def missing_modules(names: Sequence[str] = ('venv', 'ensurepip')) -> list[str]:
    """Those of ``names`` that this Python cannot find."""
    return [name for name in names if find_spec(name) is None]


def check_venv(missing: Sequence[str], version: Sequence[int] = sys.version_info) -> None:
    """Raise if a module that creates environments is missing: Debian ships them in a separate package."""
    if missing:
        raise SetupError(
            f'Python {version[0]}.{version[1]} lacks its {missing[0]} module, so it cannot create an environment.\n'
            f'On Debian and Ubuntu: apt-get install python{version[0]}.{version[1]}-venv'
        )


def check_disk(free: int, needed_gib: float, where: Path, what: str, remedy: str) -> None:
    """Raise if ``free`` bytes are too few for ``what``."""
    if free < needed_gib * GIB:
        raise SetupError(
            f'{what} needs about {needed_gib:g} GB in {where}, where {free / GIB:.1f} GB are free.\n{remedy}'
        )


def free_space(where: Path) -> int:
    """Free bytes of the file system that holds ``where``, which need not exist yet."""
    while not where.exists():
        where = where.parent
    return shutil.disk_usage(where).free


def compiler_command(env: dict[str, str]) -> list[str]:
    """The C++ compiler that torch's build calls."""
    return shlex.split(env.get('CXX', '')) or ['c++']


def check_compiler(compiler: list[str], include: str) -> str:
    """Compile and link a small extension that includes Python.h. Return the compiler's name, or raise."""
    if shutil.which(compiler[0]) is None:
        raise SetupError(f'mmcv must be compiled, and there is no C++ compiler ({compiler[0]}).\n{APT_COMPILER}')
    with tempfile.TemporaryDirectory() as temp:
        source = Path(temp, 'probe.cpp')
        source.write_text('#include <vector>\n#include <Python.h>\nint probe() { return std::vector<int>(1)[0]; }\n')
        call = [*compiler, '-shared', '-fPIC', f'-I{include}', str(source), '-o', f'{temp}/probe.so']
        done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    if done.returncode:
        if 'Python.h' in done.stdout:
            raise SetupError(f'mmcv must be compiled, and Python.h is missing in {include}.\n{APT_COMPILER}')
        last = (done.stdout.strip().splitlines() or ['no output'])[-1]
        raise SetupError(f'{compiler[0]} cannot compile a small C++ program: {last}\n{APT_COMPILER}')
    said = subprocess.run([*compiler, '-dumpfullversion', '-dumpversion'], capture_output=True, text=True).stdout
    return f'{Path(compiler[0]).name} {said.strip().splitlines()[0]}'


def nvcc_version(home: str) -> str | None:
    """CUDA version of the toolkit's nvcc; None if there is none."""
    nvcc = shutil.which('nvcc', path=str(Path(home, 'bin'))) if home else shutil.which('nvcc')
    if nvcc is None:
        return None
    found = re.search(r'release (\d+\.\d+)', subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout)
    return found.group(1) if found else None


def check_cuda_compiler(torch: str, cuda: str, nvcc: str | None) -> None:
    """Raise if nvcc, needed for mmcv's GPU operations, is missing or has another major version than torch's CUDA."""
    wanted = (
        f'the CUDA {cuda} toolkit (https://developer.nvidia.com/cuda-downloads), with nvcc on PATH or CUDA_HOME set'
    )
    cpu_only = 'To do without the GPU: CUDA_VISIBLE_DEVICES= make setup'
    if nvcc is None:
        raise SetupError(f'There is a GPU, but no nvcc to compile mmcv for it. Install {wanted}.\n{cpu_only}')
    if nvcc.split('.')[0] != cuda.split('.')[0]:
        raise SetupError(
            f'nvcc has CUDA {nvcc}, and torch {torch} has CUDA {cuda}: mmcv cannot be compiled for the GPU. '
            f'Install {wanted}.\n{cpu_only}'
        )
