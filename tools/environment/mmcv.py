"""Build mmcv for the installed torch: its flags, its cache key, and the GPUs that it is compiled for."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from environment import cuda, machine, precompiled
from environment.messages import stop
from environment.uv import Uv


class Torch(NamedTuple):
    """The torch that mmcv is compiled for."""

    version: str  # with its build: 2.13.0+cpu, 2.13.0+cu130
    cuda: str  # its CUDA version; '' for a CPU build
    archs: str  # GPU architectures to compile mmcv's operations for; '' for a CPU
    home: str  # CUDA toolkit that the build would use; '' if none


PROBE_TORCH = """
import json, os, torch
from torch.utils.cpp_extension import CUDA_HOME
gpu = torch.cuda.is_available()
found = sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}) if gpu else []
cuda = gpu or (os.environ.get('FORCE_CUDA') == '1' and torch.version.cuda is not None)
archs = (os.environ.get('TORCH_CUDA_ARCH_LIST') or ';'.join(found) or 'default') if cuda else ''
print('PROBE' + json.dumps([torch.__version__, torch.version.cuda or '', archs, CUDA_HOME or '']))
"""


def probe_torch(python: Path) -> Torch:
    """Ask the environment's torch; stop if it does not import."""
    _, said = machine.ask([python, '-c', PROBE_TORCH])
    found = re.search('^PROBE(.*)$', said, re.M)
    if not found:
        stop(f'torch does not import: {said.splitlines()[-1]}\nStart afresh: rm -rf .venv && make setup')
    torch = Torch(*json.loads(found.group(1)))
    default = cuda.ARCHITECTURES.get(torch.cuda.split('.')[0], '')  # FORCE_CUDA=1 without a GPU
    return torch._replace(archs=default) if torch.archs == 'default' else torch


def cache_key(torch: Torch) -> list[str]:
    """Options that add the GPUs to uv's cache key of mmcv, which has the versions of torch and Python already."""
    return ['--config-settings-package', f'mmcv:gpu={torch.archs}'] if torch.archs else []


def build_env(temp: Path, include: Sequence[str] = ()) -> dict[str, str]:
    """The environment variables that mmcv is compiled with.

    Debug symbols take half of the time, and Python compiles extensions with ``-g``. CPPFLAGS adds to Python's flags; a
    CFLAGS variable would replace them, ``-O3`` included. Objects go to a fresh folder: uv compiles every build of a
    source in the same place, where ninja would find the objects of another torch up to date.
    """
    (temp / 'setup.cfg').write_text(f'[build]\nbuild_base = {temp}/build\n')
    return {
        'DIST_EXTRA_CONFIG': f'{temp}/setup.cfg',
        'CPPFLAGS': ' '.join([os.environ.get('CPPFLAGS', ''), '-g0', *include]).strip(),
        'MAX_JOBS': os.environ.get('MAX_JOBS') or str(machine.jobs()),
        'PYTHONUNBUFFERED': '1',
        'RUST_LOG': 'uv_build_frontend=debug',  # uv then prints the build's output
    }


def install(torch: Torch, uv: Uv, reinstall: bool) -> None:
    """Install mmcv for this torch: uv takes the build from its cache, or compiles it.

    ``reinstall`` replaces an installed mmcv, which may have been compiled for another torch.
    """
    on_gpus = {}
    if torch.archs:  # the build alone sees this CUDA_HOME
        home = cuda.toolkit(torch.home, torch.cuda, uv)
        on_gpus = {'CUDA_HOME': home, 'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': torch.archs}
    if reinstall:
        uv.uninstall('mmcv')  # uv's --reinstall would look for a newer source, and compile it again
    with tempfile.TemporaryDirectory(prefix='swinv2_mm-') as folder:
        temp = Path(folder)
        env = {**os.environ, **build_env(temp)}
        with precompiled.included(temp, uv.python, env) as include:
            uv.install(*cache_key(torch), 'torch', 'mmcv', env={**build_env(temp, include), **on_gpus})
