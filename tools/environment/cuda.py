"""What a GPU needs: a driver for torch's CUDA, and an nvcc of the same version, from PyPI where there is none."""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from environment.machine import ask
from environment.messages import say, stop
from environment.uv import Uv

# By the major version of CUDA: the oldest driver, the lowest compute capability, and what to compile for without a GPU.
DRIVERS = {'13': (580, 65), '12': (525, 60)}
CAPABILITIES = {'13': (7, 5), '12': (5, 0)}
ARCHITECTURES = {'13': '7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX', '12': '6.0;7.0;7.5;8.0;8.6;8.9;9.0+PTX'}
# The CUDA of the pinned torch on PyPI, and the variables that may take it from elsewhere.
PINNED = '13.0'
ELSEWHERE = (
    'UV_TORCH_BACKEND',
    *(
        f'{tool}_{name}'
        for tool in ('UV', 'PIP')
        for name in ('INDEX_URL', 'INDEX', 'DEFAULT_INDEX', 'EXTRA_INDEX_URL', 'FIND_LINKS')
    ),
)
WITHOUT = 'To do without the GPU: CUDA_VISIBLE_DEVICES= make setup'


class Gpu(NamedTuple):
    """A GPU as its driver reports it."""

    name: str
    capability: tuple
    driver: tuple


def gpus() -> list:
    """The GPUs of this machine; none if there is no driver or CUDA_VISIBLE_DEVICES is empty."""
    if not shutil.which('nvidia-smi') or os.environ.get('CUDA_VISIBLE_DEVICES') == '':
        return []
    query = ['nvidia-smi', '--query-gpu=name,compute_cap,driver_version', '--format=csv,noheader']
    status, said = ask(query)
    rows = [re.split(r',\s*', line) for line in said.splitlines()]
    return [Gpu(name, _numbers(cap), _numbers(driver)) for name, cap, driver in rows] if status == 0 else []


def _numbers(version: str) -> tuple:
    return tuple(int(part) for part in version.split('.')[:2])


def check_gpus(cuda: str, torch: str) -> None:
    """Stop if the driver is too old for a version of CUDA, or a GPU too old for torch's build of it.

    Args:
        cuda: Such as ``'13.0'``; empty for a build of torch without CUDA.
        torch: Its version, for the message.
    """
    major = cuda.split('.')[0]
    for gpu in gpus() if major in DRIVERS else []:
        needed, lowest = DRIVERS[major], CAPABILITIES[major]
        if gpu.driver < needed:
            stop(
                f'The driver of the {gpu.name} has version {_text(gpu.driver)}, and torch {torch} with CUDA {cuda} '
                f'needs {_text(needed)} or newer. Update the driver, or install a build of torch that fits it:\n'
                f'rm -rf .venv && UV_TORCH_BACKEND=auto make setup\n{WITHOUT}'
            )
        if gpu.capability < lowest:
            stop(
                f'The {gpu.name} has compute capability {_text(gpu.capability)}, and torch {torch} with CUDA {cuda} '
                f'computes on {_text(lowest)} or higher. A build of torch with an older CUDA may support it:\n'
                f'rm -rf .venv && UV_TORCH_BACKEND=cu126 make setup\n{WITHOUT}'
            )


def _text(version: tuple) -> str:
    return '.'.join(map(str, version))


def toolkit(home: str, cuda: str, uv: Uv) -> str:
    """The folder of a CUDA toolkit that mmcv can be compiled with; it is installed from PyPI where none fits.

    Args:
        home: The toolkit that torch has found; empty if there is none.
        cuda: The version of CUDA that torch has been built with.
        uv: Installs into the environment.
    """
    problem = _problem(home, cuda)
    if not problem:
        return home
    if cuda.split('.')[0] != '13':  # PyPI's wheels for CUDA 12 hold no nvcc
        stop(
            f'mmcv cannot be compiled for the GPU: {problem}. Install the CUDA {cuda} toolkit '
            f'(https://developer.nvidia.com/cuda-downloads), with nvcc on PATH or CUDA_HOME set.\n{WITHOUT}'
        )
    say(f'install nvcc {cuda} from PyPI, since {problem}')
    uv.install('torch', f'cuda-toolkit[nvcc,cccl]=={cuda}.*')
    found = next(uv.python.parents[1].glob('lib/python3.*/site-packages/nvidia/cu13'))
    library = found / 'lib' / 'libcudart.so'  # the wheel has the name with a version only, which no linker looks for
    if not library.exists():
        library.symlink_to(next(library.parent.glob('libcudart.so.*')).name)
    problem = _problem(str(found), cuda)
    if problem:
        stop(f'mmcv cannot be compiled for the GPU: {problem}.\n{WITHOUT}')
    return str(found)


def _problem(home: str, cuda: str) -> str | None:
    """Why a toolkit cannot compile for torch; None if it can. A wrapper that is called nvcc may only seem to."""
    nvcc = shutil.which('nvcc', path=os.path.join(home, 'bin')) if home else None
    if nvcc is None:
        return 'there is no nvcc'
    version = re.search(r'release (\d+)\.(\d+)', ask([nvcc, '--version'])[1])
    if version is None or version.group(1) != cuda.split('.')[0]:
        has = f'CUDA {version.group(1)}.{version.group(2)}' if version else 'no version of CUDA'
        return f'{nvcc} has {has}, torch CUDA {cuda}'
    with tempfile.TemporaryDirectory() as temp:
        source = Path(temp, 'probe.cu')
        source.write_text('#include <cuda_runtime.h>\n__global__ void probe() {}\n')
        status, said = ask([nvcc, '-c', source, '-o', f'{temp}/probe.o'])
    return f'{nvcc} cannot compile a kernel: {said.splitlines()[-1]}' if status else None
