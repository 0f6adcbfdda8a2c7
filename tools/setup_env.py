"""Set up ``.venv`` with uv: the pinned packages, mmcv compiled for the installed torch, and swinv2_mm itself.

Every ``make`` target that needs the environment runs this script. If nothing has changed it ends at once. It runs with
the system's Python, and this file must parse on Python 3.6, so that an old Python shows which one is needed. It has the
steps, and the stamp that tells whether anything is left to do; ``tools/environment`` has the rest.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'swinv2_mm.json'
LOG = VENV / 'setup.log'
SUPPORTED = ((3, 10), (3, 12))
EXTRAS = '.[det,seg,tensorboard,test]'
# GiB that the environment takes (the wheels of CUDA alone unpack to 7), and compiling mmcv.
VENV_GIB, VENV_CUDA_GIB, BUILD_GIB = 3, 12, 2


def check_python(version: Sequence[int]) -> None:
    """Exit unless the pinned packages exist for this Python."""
    low, high = SUPPORTED
    if not low <= tuple(version[:2]) <= high:
        sys.exit(
            f'\nsetup stopped. Python {version[0]}.{version[1]} cannot be used: the packages need 3.{low[1]} to '
            f'3.{high[1]}.\nInstall one of those and name it, for example: make setup PYTHON=python3.11'
        )


# --- whether anything is left to do ----------------------------------------------------------------------------------


def pinned(name: str) -> str:
    """Version of a package in constraints.txt."""
    return re.search(rf'^{name}==(\S+)', (ROOT / 'constraints.txt').read_text(), re.M).group(1)


def installed(name: str) -> Optional[str]:
    """Version of a package in the environment, read without importing it, and when it was installed; None without it.

    The version alone does not change when ``pip install mmcv`` brings a wheel that was compiled for another torch.
    """
    found = next(VENV.glob(f'lib/python3.*/site-packages/{name}-*.dist-info'), None)
    return found and f'{found.name} {found.stat().st_mtime_ns}'


def state() -> Dict[str, Any]:
    """The environment now, and a hash of the files that decide what it holds. Its path counts: its scripts hold it."""
    digest = hashlib.sha256()
    names = ('constraints.txt', 'pyproject.toml', 'setup.py', 'tools/setup_env.py', 'tools/environment/*.py')
    for pattern in (*names, 'swinv2_mm/**/*.cpp', 'swinv2_mm/**/*.h'):
        for path in sorted(ROOT.glob(pattern)):
            digest.update(path.read_bytes())
    return {'inputs': digest.hexdigest(), 'torch': installed('torch'), 'mmcv': installed('mmcv'), 'venv': str(VENV)}


def read_stamp() -> Dict[str, Any]:
    """The state after the last complete setup; empty if there was none."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def up_to_date(stamp: Dict[str, Any], now: Dict[str, Any]) -> bool:
    """Whether nothing has changed since the last complete setup."""
    return stamp == now and PYTHON.exists()


def usable(stamp: Dict[str, Any]) -> bool:
    """Whether ``.venv`` starts, has pip, and has not been moved."""
    call = [str(PYTHON), '-m', 'pip', '--version']
    moved = stamp.get('venv', str(VENV)) != str(VENV)
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    return PYTHON.exists() and not moved and subprocess.call(call, **quiet) == 0


# --- the steps -------------------------------------------------------------------------------------------------------


def set_up(stamp: Dict[str, Any]) -> None:
    """All steps. Each finds what an interrupted earlier run has done."""
    from environment import cuda, machine, mmcv, uv
    from environment.messages import say, stop

    machine.check_compiler(sysconfig.get_path('include'))
    if installed('torch') is None:
        if not any(os.environ.get(name) for name in cuda.ELSEWHERE):
            cuda.check_gpus(cuda.PINNED, pinned('torch'))  # before gigabytes are downloaded
        machine.check_disk(VENV_CUDA_GIB if shutil.which('nvidia-smi') else VENV_GIB, ROOT, 'Free some space.')
        remedy = 'Free some space, or name another place: TMPDIR=/some/where make setup'
        machine.check_disk(BUILD_GIB, Path(tempfile.gettempdir()), remedy)
    if not usable(stamp):
        say('create .venv with Python {}.{}.{}'.format(*sys.version_info[:3]))
        uv.make_environment(VENV)
    LOG.write_text('')
    packages = uv.Uv(PYTHON, ROOT / 'constraints.txt', LOG)
    packages.bootstrap(pinned('uv'))
    say(f'install torch {pinned("torch")} and what compiling needs')
    packages.install('torch', 'setuptools', 'ninja')
    torch = mmcv.probe_torch(PYTHON)
    cuda.check_gpus(torch.cuda, torch.version)
    say(f'install mmcv {pinned("mmcv")}; it is compiled once for torch {torch.version}, in minutes')
    same = (stamp.get('torch'), stamp.get('mmcv')) == (installed('torch'), installed('mmcv'))
    mmcv.install(torch, packages, reinstall=not same)
    say('install MMDetection, MMSegmentation, swinv2_mm and the rest')
    packages.install(*mmcv.cache_key(torch), '-e', EXTRAS)
    say('check the environment')
    report = subprocess.run([str(PYTHON), '-m', 'swinv2_mm.doctor'], cwd=str(ROOT), stdout=subprocess.PIPE)
    if report.returncode:
        afresh = f'{os.path.relpath(packages.program)} cache clean mmcv && rm -rf .venv && make setup'
        stop(f'The environment cannot train:\n{report.stdout.decode()}\nStart afresh: {afresh}')
    STAMP.write_text(json.dumps(state(), indent=1) + '\n')
    say('ready: make test, make train, . .venv/bin/activate')


def wait_for_others() -> None:
    """Hold this checkout's lock until this process ends, where the file system has locks."""
    handle = os.open(str(ROOT), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('waiting for another `make setup` of this checkout', flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        pass


def main() -> None:
    stamp = read_stamp()
    if up_to_date(stamp, state()):
        return
    if usable(stamp) and not os.path.samefile(sys.prefix, str(VENV)):
        os.execv(str(PYTHON), [str(PYTHON), *sys.argv])
    check_python(sys.version_info)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wait_for_others()
    stamp = read_stamp()
    if not up_to_date(stamp, state()):  # another one may just have finished
        set_up(stamp)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\nsetup stopped. Interrupted; `make setup` continues where it stopped.')
