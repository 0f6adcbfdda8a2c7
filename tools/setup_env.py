"""Set up ``.venv`` with uv: the pinned packages, mmcv compiled for the installed torch, and swinv2_mm itself.

Every ``make`` target that needs the environment runs this script. If nothing has changed it ends at once. It runs with
the system's Python, and this file must parse on Python 3.6, so that an old Python shows which one is needed.

uv resolves, installs, builds mmcv and keeps its build per torch (``[tool.uv]`` in pyproject.toml). This file has the
order of the steps, and the stamp that tells whether anything is left to do; ``tools/environment`` has the rest.

A torch that somebody installed into ``.venv`` by hand, for example the build for an older driver, is kept, and mmcv is
compiled for it. ``rm -rf .venv && make setup`` returns to the pinned version.
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
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, NoReturn, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / 'swinv2_mm.json'
LOG = VENV / 'setup.log'
SUPPORTED = ((3, 10), (3, 12))
EXTRAS = '.[det,seg,tensorboard,test]'
# GiB that the environment takes. The wheels of CUDA alone unpack to 7.
VENV_GIB, VENV_CUDA_GIB = 3, 12


def stop(message: str) -> NoReturn:
    sys.exit('\nsetup stopped. ' + message)


def check_python(version: Sequence[int]) -> None:
    """Exit unless the pinned packages exist for this Python."""
    low, high = SUPPORTED
    if not low <= tuple(version[:2]) <= high:
        stop(
            'Python {}.{} cannot be used: the packages need 3.{} to 3.{}.\n'
            'Install one of those and name it, for example: make setup PYTHON=python3.11'.format(
                version[0], version[1], low[1], high[1]
            )
        )


def find_python(names: Sequence[str] = ('python3.12', 'python3.11', 'python3.10')) -> Optional[str]:
    """A supported Python on PATH that really starts: pyenv puts some there that do not."""
    for name in names:
        path = shutil.which(name)
        if path and subprocess.call([path, '-c', ''], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return path
    return None


# --- what the environment holds, without importing it ----------------------------------------------------------------


def site_packages() -> Optional[Path]:
    """Where the environment keeps its packages; None before there is one."""
    return next(iter(sorted(VENV.glob('lib/python3.*/site-packages'))), None)


def installed(name: str, site: Optional[Path] = None) -> Optional[str]:
    """Version of a package in the environment, from its dist-info."""
    site = site or site_packages()
    for info in site.glob('{}-*.dist-info'.format(name)) if site else ():
        return info.name[len(name) + 1 : -len('.dist-info')]
    return None


def mmcv_installed(site: Optional[Path] = None) -> Optional[str]:
    """The installed mmcv: its version, and the size and time of its compiled file.

    The version alone does not change when ``pip install mmcv`` brings a wheel that was compiled for another torch.
    """
    site = site or site_packages()
    compiled = next(iter(site.glob('mmcv/_ext*.so')), None) if site else None
    if compiled is None:
        return None
    return '{} {} {}'.format(installed('mmcv', site), compiled.stat().st_size, compiled.stat().st_mtime_ns)


def pinned(name: str) -> str:
    """Version of a package in constraints.txt."""
    found = re.search(r'^{}==(\S+)'.format(re.escape(name)), (ROOT / 'constraints.txt').read_text(), re.M)
    return found.group(1) if found else stop('constraints.txt has no line {}==…'.format(name))


def inputs_hash() -> str:
    """Hash of the files that decide what the environment holds."""
    digest = hashlib.sha256()
    sources = [path for end in ('cpp', 'h') for path in sorted((ROOT / 'swinv2_mm').rglob('*.' + end))]
    ours = sorted((ROOT / 'tools' / 'environment').glob('*.py'))
    names = ('constraints.txt', 'pyproject.toml', 'setup.py', 'tools/setup_env.py')
    for path in (*(ROOT / name for name in names), *ours, *sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp() -> Dict[str, Any]:
    """What the last complete setup wrote; empty if there was none."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def state(inputs: str) -> Dict[str, Any]:
    """What the stamp must agree with: the environment now. Its path counts, since its scripts hold it."""
    return {'inputs': inputs, 'torch': installed('torch'), 'mmcv': mmcv_installed(), 'venv': str(VENV)}


def up_to_date(stamp: Dict[str, Any], now: Dict[str, Any]) -> bool:
    """Whether nothing has changed since the last complete setup."""
    return now['torch'] is not None and all(stamp.get(key) == value for key, value in now.items())


def done_already(inputs: str) -> bool:
    return PYTHON.exists() and up_to_date(read_stamp(), state(inputs))


# --- which torch -----------------------------------------------------------------------------------------------------


def torch_to_install(pin: str, found: Optional[str], stamp: Dict[str, Any]) -> Tuple[str, bool]:
    """The version of torch to install, and whether somebody chose it by hand.

    Args:
        pin: Version in constraints.txt.
        found: Version in the environment, with its build (``2.13.0+cpu``); None if there is none.
        stamp: What the last complete setup wrote.
    """
    if found is None or found.split('+')[0] == pin:
        return pin, False
    ours = stamp.get('torch') == found and not stamp.get('own_torch')
    return (pin, False) if ours else (found, True)


def constraints_with(lines: str, version: str, own: bool) -> str:
    """The text of constraints.txt for this torch. A torch installed by hand brings its own Triton."""
    if own:
        lines = re.sub(r'^triton==.*\n', '', lines, flags=re.M)
    return re.sub(r'^torch==\S+', 'torch==' + version, lines, flags=re.M)


# --- the steps -------------------------------------------------------------------------------------------------------


def prepare_venv(stamp: Dict[str, Any]) -> None:
    """Create ``.venv``, unless there is a usable one."""
    site = site_packages()
    moved = bool(stamp) and stamp.get('venv') != str(VENV)
    if site is None or moved or not (site / 'pip').is_dir() or not PYTHON.exists():
        command = [sys.executable, '-m', 'venv', '--clear', str(VENV)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            said = done.stdout.decode(errors='replace').strip().splitlines() or ['no output']
            stop('Creating the environment {} failed: {}'.format(VENV, said[-1]))
        return
    version = site.parent.name[len('python') :]
    if version != '{}.{}'.format(*sys.version_info[:2]):
        if os.environ.get('PYTHON'):
            stop(
                '.venv was made with Python {}, and you asked for {}.{}. Remove it first: rm -rf .venv'.format(
                    version, *sys.version_info[:2]
                )
            )
        os.execv(str(PYTHON), [str(PYTHON), *sys.argv])


def check_machine(cache: Path) -> str:
    """Report what would stop the setup later, before anything is downloaded."""
    from environment import machine, mmcv

    machine.check_venv(machine.missing_modules())
    notes = ['Python {}.{}.{}'.format(*sys.version_info[:3])]
    if installed('torch') is None:
        needed = VENV_CUDA_GIB if shutil.which('nvidia-smi') else VENV_GIB
        for place, name in ((ROOT, 'The environment'), (cache, "uv's cache")):
            remedy = 'Free some space, or name another place for the cache: UV_CACHE_DIR=/some/where make setup'
            machine.check_disk(machine.free_space(place), needed, place, name, remedy)
    if not mmcv.is_cached(cache, 'cp{}{}'.format(*sys.version_info[:2])):
        notes.append(machine.check_compiler(machine.compiler_command(os.environ), sysconfig.get_path('include')))
    return ', '.join([*notes, '{:.0f} GB free'.format(machine.free_space(ROOT) / machine.GIB)])


def set_up(inputs: str, stamp: Dict[str, Any]) -> None:
    """All steps. Each finds what an interrupted earlier run has done."""
    from environment import mmcv, progress, uv

    began, screen = time.monotonic(), progress.Screen(steps=5)
    screen.step('check this machine')
    cache = uv.cache(os.environ, VENV / 'uv-cache')
    screen.end(check_machine(cache))
    screen.step('create .venv')
    prepare_venv(stamp)
    LOG.write_text('')
    version, own = torch_to_install(pinned('torch'), installed('torch'), stamp)
    constraints = VENV / 'constraints.txt'
    constraints.write_text(constraints_with((ROOT / 'constraints.txt').read_text(), version, own))
    packages = uv.Uv(PYTHON, constraints, cache, screen, LOG)
    screen.end('uv: {}'.format(packages.program))

    screen.step('install torch {} and what compiling needs'.format(version))
    if own:
        screen.say('torch {} was installed by hand and is kept; tested is {}'.format(version, pinned('torch')))
    packages.install('torch', 'setuptools', 'ninja')
    screen.end()
    torch = mmcv.probe_torch(PYTHON)
    screen.step('install mmcv {} for torch {}'.format(pinned('mmcv'), torch.version))
    same = stamp.get('torch') == installed('torch') and stamp.get('mmcv') == mmcv_installed()
    mmcv.install(torch, installed('mmcv') is not None and not same, packages)
    screen.end()
    screen.step('install MMDetection, MMSegmentation, swinv2_mm and the rest')
    packages.install(*mmcv.cache_key(torch), '-e', EXTRAS)
    problem = mmcv.problem(PYTHON)
    if problem:
        stop('mmcv does not run: {}\nStart afresh: rm -rf .venv && make setup'.format(problem))
    screen.end()
    STAMP.write_text(json.dumps(dict(state(inputs), own_torch=own), indent=1) + '\n')
    print('ready in {}: make test, make train, . .venv/bin/activate'.format(progress.minutes(time.monotonic() - began)))


@contextmanager
def only_one() -> Iterator[None]:
    """Wait while another setup of this checkout runs, where the file system has locks."""
    handle = os.open(str(ROOT), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('waiting for another `make setup` of this checkout', flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def main() -> None:
    inputs = inputs_hash()
    if done_already(inputs):
        return
    other = None if SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1] else find_python()
    if other:
        print('Python {}.{} cannot be used. Using {}'.format(*sys.version_info[:2], other), flush=True)
        os.execv(other, [other, *sys.argv])
    check_python(sys.version_info)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with only_one():
        if not done_already(inputs):  # another one may just have finished
            set_up(inputs, read_stamp())


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        stop('Interrupted; `make setup` continues where it stopped.')
