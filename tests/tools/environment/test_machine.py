"""tools/environment/machine.py: one clear message for whatever is missing on a machine."""

import sysconfig
from types import SimpleNamespace

import pytest
from environment import machine
from support.environments import needs_gcc


def test_low_disk_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    """Bug: the download fills the disk and pip ends in a traceback."""
    monkeypatch.setattr(machine.shutil, 'disk_usage', lambda where: SimpleNamespace(free=machine.GIB))
    with pytest.raises(SystemExit, match=r'needs about 3 GB in .*, where 1\.0 GB are free\.\nFree some space'):
        machine.check_disk(3, tmp_path, 'Free some space.')
    machine.check_disk(1, tmp_path, 'Free some space.')


@pytest.mark.parametrize(
    ('compiler', 'told'),
    [
        ('no-such-compiler', r'no C\+\+ compiler \(no-such-compiler\)'),
        ('false', 'false cannot compile a small C\\+\\+ program'),
    ],
)
def test_missing_or_broken_compiler_names_the_package(compiler, told, monkeypatch):
    """Bug: mmcv's build dies after a minute with ``command 'c++' failed``."""
    monkeypatch.setenv('CXX', compiler)
    with pytest.raises(SystemExit, match=told) as error:
        machine.check_compiler(sysconfig.get_path('include'))
    assert 'apt-get install build-essential python3-dev' in str(error.value)


@needs_gcc
def test_missing_python_headers_are_told_apart_from_a_missing_compiler(tmp_path, monkeypatch):
    """Bug: "install a compiler" is said to somebody who has one and lacks python3-dev."""
    monkeypatch.setenv('CXX', 'g++')
    with pytest.raises(SystemExit, match=r'Python\.h is missing'):
        machine.check_compiler(str(tmp_path))
