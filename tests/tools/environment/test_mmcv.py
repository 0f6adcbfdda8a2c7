"""tools/environment/mmcv.py: what mmcv is compiled for and with, and when it is compiled again."""

import re
import subprocess

import pytest
from environment import cuda, mmcv
from support.environments import bare_environment, needs_uv, write_packages

CPU = mmcv.Torch('2.13.0+cpu', '', '', '')
GPU = mmcv.Torch('2.13.0+cu130', '13.0', '9.0', '/usr/local/cuda')


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """A folder with small packages for uv, where mmcv is built for any torch."""
    write_packages(tmp_path, monkeypatch)
    monkeypatch.setattr(cuda, 'toolkit', lambda home, version, uv: home)
    return tmp_path


def torch_of(made):
    """Which torch the mmcv of an environment was built for."""
    return subprocess.run([made.python, '-c', 'import mmcv; print(mmcv.TORCH)'], capture_output=True, text=True).stdout


def builds(folder):
    return len((folder / 'builds').read_text().splitlines())


@needs_uv
def test_mmcv_is_built_for_the_installed_torch_and_cached_for_each(fakes):
    """Bug: an mmcv that was compiled for another torch imports with undefined symbols; or each clone compiles it."""
    first = bare_environment(fakes, 'first')
    first.install('torch==1.0+cpu')
    mmcv.install(CPU, first, reinstall=False)
    assert torch_of(first) == '1.0+cpu\n' and builds(fakes) == 1
    version = subprocess.run([first.python, '-c', 'import mmengine; print(mmengine.VERSION)'], capture_output=True)
    assert version.stdout == b'0.9\n'  # the constraints hold

    second = bare_environment(fakes, 'second')
    second.install('torch==1.0+cpu')
    mmcv.install(CPU, second, reinstall=False)
    assert torch_of(second) == '1.0+cpu\n' and builds(fakes) == 1

    # By hand, from an index that setup does not know.
    second.install('--find-links', fakes / 'elsewhere', 'torch==2.0+cpu')
    mmcv.install(CPU, second, reinstall=True)
    assert torch_of(second) == '2.0+cpu\n' and builds(fakes) == 2
    second.install('torch==1.0+cpu')
    mmcv.install(CPU, second, reinstall=True)
    assert torch_of(second) == '1.0+cpu\n' and builds(fakes) == 2

    mmcv.install(GPU, first, reinstall=True)
    assert builds(fakes) == 3
    mmcv.install(GPU._replace(archs='8.0;9.0'), first, reinstall=True)
    assert builds(fakes) == 4
    mmcv.install(GPU, first, reinstall=True)
    assert builds(fakes) == 4
    assert torch_of(first) == '1.0+cpu\n'


@needs_uv
def test_mmcv_without_operations_is_refused(fakes, monkeypatch):
    """Bug: MMCV_WITH_OPS is lost, and mmcv-lite is installed, whose first operation fails in the middle of a run."""
    monkeypatch.setenv('OPS', 'another value')
    made = bare_environment(fakes, 'venv')
    made.install('torch==1.0+cpu')
    with pytest.raises(SystemExit, match='mmcv-lite'):
        mmcv.install(CPU, made, reinstall=False)
    assert torch_of(made) == ''


def test_mmcv_is_compiled_with_pythons_own_optimisation(tmp_path, monkeypatch):
    """Bug: CFLAGS=-g0 replaces Python's -O3, and every operation of mmcv runs several times slower."""
    from setuptools._distutils import ccompiler
    from setuptools._distutils import sysconfig as flags

    def command():
        compiler = ccompiler.new_compiler()
        flags.customize_compiler(compiler)
        return [*compiler.compiler_so, '|', *getattr(compiler, 'compiler_so_cxx', [])]

    monkeypatch.setenv('CPPFLAGS', '-DMINE')
    before = command()
    monkeypatch.setenv('CPPFLAGS', mmcv.build_env(tmp_path)['CPPFLAGS'])
    after = command()
    assert [flag for flag in after if flag != '-g0'] == before and '-DMINE' in before
    assert after[after.index('-DMINE') + 1] == '-g0'
    last = [flag for flag in after[: after.index('|')] if re.fullmatch(r'-g\d?', flag)][-1]
    assert last == '-g0'


def test_mmcv_is_compiled_in_a_fresh_folder(tmp_path, monkeypatch):
    """Bug: uv builds a source where it built it before, and ninja links the objects of another torch."""
    from setuptools import Distribution

    monkeypatch.setenv('DIST_EXTRA_CONFIG', mmcv.build_env(tmp_path)['DIST_EXTRA_CONFIG'])
    distribution = Distribution()
    distribution.parse_config_files()
    assert distribution.get_command_obj('build').build_base == f'{tmp_path}/build'
