"""Run tests in the environments that people have: older torch, and the maintained successors of OpenMMLab's packages.

    make test-compat                                     all of them, whole
    make test-compat ENVIRONMENTS='torch2.1 --quick'     without mmcv, mmdet and mmsegmentation

    make test-compat ENVIRONMENTS=mmpretrain             the classifiers, which no other environment has; and
    make test-compat ENVIRONMENTS=onedl-mmpretrain       with MMPretrain's successor

uv makes each environment once, in .environments/NAME. swinv2_mm is then installed beside what is there, which may not
change, and the tests run against the installed package.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from environment.mmcv import build_env
from environment.uv import settings

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / '.environments'
TESTS = ('pytest', 'safetensors', 'rich')
OPENMMLAB = ('mmengine==0.10.7', 'setuptools<81', 'opencv-python<4.12')
QUICK = ('tests/models', 'tests/checkpoints', 'tests/test_registry.py')
WHOLE = (*QUICK, 'tests/test_configs.py', 'tests/test_installed.py')
CLASSIFIERS = (
    'tests/engine/checks/test_weights.py',
    'tests/engine/runs/test_classifiers.py',
    'tests/test_configs.py',
    'tests/test_pretraining_configs.py',
    'tests/test_registry.py',
)


class Environment(NamedTuple):
    """What is installed, by pip's requirements.

    Attributes:
        pythons: Versions, of which the first that this machine has is taken.
        packages: With mmengine.
        frameworks: mmcv, which is compiled without CUDA, and what needs it; left out of a quick run.
        tests: What a run that is not quick runs.
    """

    pythons: tuple[str, ...]
    packages: tuple[str, ...]
    frameworks: tuple[str, ...] = ()
    tests: tuple[str, ...] = WHOLE


ENVIRONMENTS = {
    'torch2.1': Environment(
        ('3.10', '3.11'),
        ('torch==2.1.2', 'numpy==1.26.4', 'transformers==4.48.3', *OPENMMLAB),
        ('mmcv==2.1.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex'),
    ),
    'torch2.4': Environment(
        ('3.11', '3.12', '3.10'),
        ('torch==2.4.1', 'numpy==1.26.4', 'transformers==4.48.3', *OPENMMLAB),
        ('mmcv==2.1.0', 'mmdet==3.3.0', 'mmsegmentation==1.2.2', 'ftfy', 'regex'),
    ),
    'onedl': Environment(
        ('3.11', '3.12', '3.10'),
        ('torch==2.13.0', 'numpy', 'transformers<5', 'onedl-mmengine'),
        ('onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
    ),
    # mmcv without operators; torch and torchvision in builds that fit each other, for CUDA.
    'mmpretrain': Environment(
        ('3.10', '3.11'),
        (
            *('torch==2.1.2', 'torchvision==0.16.2', 'numpy==1.26.4', 'transformers==4.48.3'),
            *(*OPENMMLAB, 'mmcv-lite==2.1.0', 'mmpretrain==1.2.0'),
        ),
        tests=CLASSIFIERS,
    ),
    # MMPretrain's successor. uv builds onedl-mmcv apart from torch: without operators, nothing is compiled.
    'onedl-mmpretrain': Environment(
        ('3.11', '3.12', '3.10'),
        (
            *('torch==2.10.0', 'torchvision==0.25.0', 'numpy', 'transformers==4.57.6'),
            *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain'),
        ),
        tests=CLASSIFIERS,
    ),
}


def make(name: str, uv: list[str], quick: bool) -> Path:
    """Make an environment, or complete it. Return its interpreter."""
    environment, folder = ENVIRONMENTS[name], FOLDER / name
    python, stamp = folder / 'bin' / 'python', folder / 'complete.json'
    wanted = [*TESTS, *environment.packages, *(() if quick else environment.frameworks)]
    if not stamp.is_file() or not set(wanted) <= set(json.loads(stamp.read_text())):
        if not python.is_file():
            call(*uv, 'venv', '--quiet', '--python', interpreter(environment.pythons, uv), folder)
        install = [*uv, 'pip', 'install', '--python', python, *TESTS, *environment.packages]
        call(*install, 'ninja', 'wheel')
        if environment.frameworks and not quick:  # with the above, so that nothing of it changes
            mmcv = environment.frameworks[0].split('=')[0]
            # uv caches builds by these settings, and not by the torch that they were compiled for.
            options = ['--no-build-isolation-package', mmcv, '--config-settings-package', f'{mmcv}:environment={name}']
            with tempfile.TemporaryDirectory() as temp:
                variables = build_env(Path(temp)) | {'MMCV_WITH_OPS': '1', 'FORCE_CUDA': '0'}
                variables['PATH'] = f'{python.parent}:{os.environ["PATH"]}'  # ninja is there
                call(*install, *options, *environment.frameworks, env=variables)
        stamp.write_text(json.dumps(wanted))
    return python


def interpreter(versions: tuple[str, ...], uv: list[str]) -> str:
    """The first of these Pythons that this machine has."""
    for version in versions:
        found = subprocess.run(
            [*uv, 'python', 'find', '--no-python-downloads', version], capture_output=True, text=True
        )
        if found.returncode == 0:
            return found.stdout.strip()
    sys.exit(f'none of the Pythons {", ".join(versions)} is installed')


def call(*command: object, env: dict[str, str] | None = None) -> None:
    """Run a command, with pip's settings for uv and more variables."""
    configured = subprocess.run([sys.executable, '-m', 'pip', 'config', 'list'], capture_output=True, text=True).stdout
    variables = os.environ | settings(configured, os.environ) | (env or {})
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, env=variables)


def installed(python: Path, uv: list[str]) -> dict[str, str]:
    """The packages of an environment and their versions."""
    listed = subprocess.check_output([*uv, 'pip', 'list', '--format', 'json', '--python', python], text=True)
    return {package['name']: package['version'] for package in json.loads(listed)}


def add_ours(python: Path, uv: list[str]) -> None:
    """Install this checkout as a user would; stop if that changes or adds another package."""
    before = installed(python, uv)
    call(*uv, 'pip', 'install', '--quiet', '--python', python, '--reinstall-package', 'swinv2-mm', ROOT)
    after = installed(python, uv)
    changed = {
        name: (before.get(name), after.get(name)) for name in before | after if before.get(name) != after.get(name)
    }
    changed.pop('swinv2-mm', None)
    if changed:
        sys.exit(f'installing swinv2_mm changed {changed}')


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', choices=[*ENVIRONMENTS, []], help='all by default')
    parser.add_argument('--quick', action='store_true', help='models, checkpoints and registries, without mmcv')
    parser.add_argument('--args', default='', help='more arguments for pytest, in one string')
    args = parser.parse_args(arguments)
    uv = [shutil.which('uv') or str(Path(sys.executable).with_name('uv'))]
    results = []
    for name in args.names or ENVIRONMENTS:
        start = time.monotonic()
        python = make(name, uv, args.quick)
        add_ours(python, uv)
        made = time.monotonic() - start
        tests = QUICK if args.quick and ENVIRONMENTS[name].frameworks else ENVIRONMENTS[name].tests
        # pytest's own command leaves the folder out of the import path: the installed package is tested.
        command = [python.with_name('pytest'), '-m', 'not slow', *tests, *args.args.split()]
        last = ''
        with subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
            for line in run.stdout:
                print(line, end='', flush=True)
                last = line.strip('= \n') or last
        results.append((name, run.returncode, f'{name}: made in {made:.0f} s; {last}'))
    print(*(line for *_, line in results), sep='\n')
    return max(code for _, code, _ in results)


if __name__ == '__main__':
    sys.exit(main())
