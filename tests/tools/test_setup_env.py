"""tools/setup_env.py: what it says where it cannot start, and what it finds changed."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env
from support.environments import needs_gcc

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize('version', [(3, 8, 0), (3, 9, 18), (3, 13, 0), (4, 11, 0), (2, 7, 18)])
def test_other_pythons_are_refused_with_the_command_to_type(version):
    """Bug: pip fails an hour later in a source build of scipy, because there are no wheels for this Python."""
    with pytest.raises(SystemExit, match=r'need 3\.10 to 3\.12') as error:
        setup_env.check_python(version)
    assert 'make setup PYTHON=python3.11' in str(error.value)
    assert f'Python {version[0]}.{version[1]} ' in str(error.value)


@pytest.mark.parametrize('version', [(3, 10, 0), (3, 11, 7), (3, 12, 99)])
def test_supported_pythons_are_accepted(version):
    """Bug: comparing ``3.10`` as a number or a string puts it below 3.9."""
    assert setup_env.check_python(version) is None


def copy_of_the_tools(directory):
    """A checkout small enough to run setup_env in, without an environment."""
    for name in ('constraints.txt', 'pyproject.toml', 'setup.py', 'tools/setup_env.py'):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    shutil.copytree(ROOT / 'tools/environment', directory / 'tools/environment')
    return directory


def start_setup(directory, **env):
    """Start the script as ``make setup`` does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PIP_', 'UV_'))}
    clean.update(XDG_CACHE_HOME=str(directory / 'cache'), PIP_CONFIG_FILE=os.devnull, **env)
    command = [sys._base_executable, str(directory / 'tools' / 'setup_env.py')]
    return subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_setup(directory, **env):
    """Run the script as ``make setup`` does; returns its exit status and all that it printed."""
    process = start_setup(directory, **env)
    return process.wait(), process.stdout.read()


def test_without_a_compiler_the_script_stops_first(tmp_path):
    """Bug: the environment is downloaded for minutes, and only then the missing compiler is noticed."""
    checkout = copy_of_the_tools(tmp_path)
    status, output = run_setup(checkout, PATH=str(tmp_path))
    assert status == 1
    assert 'apt-get install build-essential python3-dev' in output
    assert 'Traceback' not in output
    assert not (checkout / '.venv').exists()


@needs_gcc
def test_without_a_network_the_script_stops_with_one_message(tmp_path):
    """Bug: fifteen lines of retries and a traceback, and nothing about the network."""
    checkout = copy_of_the_tools(tmp_path)
    # A closed port of this machine: refused at once.
    status, output = run_setup(checkout, PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='1')
    assert status == 1
    assert 'package index cannot be reached' in output
    assert 'Traceback' not in output
    assert re.search(r'setup\.log', output)


@pytest.mark.parametrize('stopped', [False, True])
def test_two_setups_of_a_checkout_wait_for_each_other(stopped, tmp_path):
    """Bug: `make test` and `make train` in two terminals write the same environment."""
    checkout = copy_of_the_tools(tmp_path)
    handle = os.open(checkout, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    process = start_setup(checkout, PATH=str(tmp_path))
    assert 'waiting for another `make setup`' in process.stdout.readline()
    if stopped:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    os.close(handle)
    # Without a compiler on PATH it ends at its first check.
    assert process.wait() == (143 if stopped else 1)
    assert ('apt-get install' in process.stdout.read()) is not stopped


def test_the_script_parses_on_old_pythons():
    """Bug: Python 3.6, the system's on some clusters, shows a SyntaxError rather than the message."""
    import ast

    source = (ROOT / 'tools' / 'setup_env.py').read_text()
    ast.parse(source, feature_version=(3, 6))
    assert '__future__' not in source  # `annotations` came with 3.7


def stamp_of(venv):
    return {'inputs': 'abc', 'torch': '2.13.0+cpu', 'mmcv': '2.1.0 7 8', 'venv': str(venv)}


@pytest.mark.parametrize(
    'change',
    [
        {'inputs': 'another constraints.txt'},
        {'torch': '2.12.0+cpu'},
        {'torch': None},
        {'mmcv': '2.1.0 9 9'},
        {'mmcv': None},
        {'venv': '/moved/.venv'},
    ],
)
def test_any_change_of_the_environment_is_noticed(change, tmp_path):
    """Bug: torch is exchanged by hand and ``make test`` runs into undefined symbols."""
    stamp = stamp_of(tmp_path)
    now = dict(stamp)
    assert setup_env.up_to_date(stamp, now)
    assert not setup_env.up_to_date(stamp, {**now, **change})
    assert not setup_env.up_to_date({}, now)


def make_site(directory, torch='2.13.0+cpu', mmcv='2.1.0', compiled=b'for this torch'):
    for name, version in (('torch', torch), ('mmcv', mmcv)):
        (directory / f'{name}-{version}.dist-info').mkdir(parents=True)
    (directory / 'mmcv').mkdir()
    (directory / 'mmcv' / '_ext.cpython-311-x86_64-linux-gnu.so').write_bytes(compiled)
    return directory


def test_versions_are_read_without_importing(tmp_path):
    """Bug: importing torch to learn its version makes every ``make`` two seconds slower. Or torchvision's is taken."""
    site = make_site(tmp_path)
    (site / 'torchvision-0.1.dist-info').mkdir()
    assert setup_env.installed('torch', site) == '2.13.0+cpu'
    assert setup_env.installed('scipy', site) is None


def test_a_stale_mmcv_of_the_same_version_is_noticed(tmp_path):
    """Bug: ``pip install mmcv`` brings a wheel from pip's cache that was compiled for another torch."""
    right = setup_env.mmcv_installed(make_site(tmp_path / 'a'))
    other = setup_env.mmcv_installed(make_site(tmp_path / 'b', compiled=b'for another torch'))
    assert right.startswith('2.1.0 ')
    assert right != other
    (tmp_path / 'a' / 'mmcv' / '_ext.cpython-311-x86_64-linux-gnu.so').unlink()
    assert setup_env.mmcv_installed(tmp_path / 'a') is None


def test_a_broken_or_moved_environment_is_made_again(tmp_path, monkeypatch):
    """Bug: Ctrl-C while ``python -m venv`` installs pip; or a moved checkout, whose scripts start another Python."""
    monkeypatch.setattr(setup_env, 'VENV', tmp_path)
    monkeypatch.setattr(setup_env, 'PYTHON', tmp_path / 'python')
    assert not setup_env.usable({})
    for status in (0, 1):
        (tmp_path / 'python').write_text(f'#!/bin/sh\nexit {status}\n')
        (tmp_path / 'python').chmod(0o755)
        assert setup_env.usable({}) is setup_env.usable(stamp_of(tmp_path)) is (status == 0)
        assert not setup_env.usable(stamp_of('/moved/.venv'))
