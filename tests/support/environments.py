"""What tests of the environment share: which tools are here, and small packages by the names of large ones."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from environment import uv

UV = shutil.which('uv') or shutil.which('uv', path=Path(sys.executable).parent)

needs_gcc = pytest.mark.skipif(shutil.which('g++') is None, reason='there is no GNU C++ compiler here')
needs_uv = pytest.mark.skipif(UV is None, reason='uv is not installed; `make setup` does')

BACKEND = """
import os, zipfile
import torch

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open(os.environ['BUILDS'], 'a') as log:
        log.write('built\\n')
    name = 'mmcv' if os.environ.get('MMCV_WITH_OPS') == os.environ['OPS'] else 'mmcv_lite'
    info, wheel = f'{name}-2.1.0.dist-info', f'{name}-2.1.0-py3-none-any.whl'
    with zipfile.ZipFile(os.path.join(directory, wheel), 'w') as out:
        out.writestr('mmcv.py', f'TORCH = {torch.VERSION!r}\\n')
        out.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\\nName: {name}\\nVersion: 2.1.0\\n')
        out.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        out.writestr(f'{info}/RECORD', '')
    return wheel
"""


def fake_wheel(directory, name, version):
    info = f'{name}-{version}.dist-info'
    with zipfile.ZipFile(directory / f'{name}-{version}-py3-none-any.whl', 'w') as out:
        out.writestr(f'{name}.py', f'VERSION = {version!r}\n')
        out.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        out.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        out.writestr(f'{info}/RECORD', '')


def write_packages(folder, monkeypatch):
    """Offline: small packages by the names of the real ones, two versions of torch, and an mmcv to be built."""
    links = folder / 'links'
    (links / 'mmcv-2.1.0').mkdir(parents=True)
    for name in ('addict', 'mmengine', 'numpy', 'packaging', 'pillow', 'pyyaml', 'yapf'):
        fake_wheel(links, name, '1.0')
    (folder / 'elsewhere').mkdir()
    fake_wheel(links, 'mmengine', '0.9')
    fake_wheel(links, 'torch', '1.0+cpu')
    fake_wheel(folder / 'elsewhere', 'torch', '2.0+cpu')
    source = links / 'mmcv-2.1.0'
    (source / 'backend.py').write_text(BACKEND)
    (source / 'PKG-INFO').write_text('Metadata-Version: 1.0\nName: mmcv\nVersion: 2.1.0\n')
    (source / 'pyproject.toml').write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    with tarfile.open(links / 'mmcv-2.1.0.tar.gz', 'w:gz') as out:
        out.add(source, source.name)
    for name in [name for name in os.environ if name.startswith(('PIP_', 'UV_'))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('UV_CACHE_DIR', str(folder / 'cache'))
    monkeypatch.setenv('UV_OFFLINE', '1')
    monkeypatch.setenv('UV_FIND_LINKS', str(links))
    monkeypatch.setenv('BUILDS', str(folder / 'builds'))
    monkeypatch.setenv('OPS', '1')


def bare_environment(folder, name):
    """An environment without packages that shares uv's cache with the others in its folder, and its uv."""
    subprocess.run([sys._base_executable, '-m', 'venv', '--without-pip', folder / name], check=True)
    (folder / 'constraints.txt').write_text('mmengine==0.9\n')
    made = uv.Uv(folder / name / 'bin' / 'python', folder / 'constraints.txt', folder / 'log')
    made.program = UV
    return made
