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


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """The environment is this folder, with the metadata of torch and mmcv."""
    monkeypatch.setattr(setup_env, 'VENV', tmp_path)
    monkeypatch.setattr(setup_env, 'PYTHON', tmp_path / 'python')
    for name in ('torch-2.13.0+cpu', 'mmcv-2.1.0', 'torchvision-0.1'):
        site_packages(tmp_path).joinpath(f'{name}.dist-info').mkdir(parents=True)
    write_python(tmp_path, 'exit 0')
    return tmp_path


def site_packages(venv):
    return venv / 'lib/python3.11/site-packages'


def write_python(venv, script):
    (venv / 'python').write_text(f'#!/bin/sh\n{script}\n')
    (venv / 'python').chmod(0o755)


def test_versions_are_read_without_importing(venv):
    """Bug: importing torch to learn its version makes every ``make`` two seconds slower. Or torchvision's is taken."""
    assert setup_env.installed('torch').startswith('torch-2.13.0+cpu.dist-info ')
    assert setup_env.installed('scipy') is None


@pytest.mark.parametrize('key', ['inputs', 'torch', 'mmcv', 'venv'])
def test_any_change_of_the_environment_is_noticed(key, venv):
    """Bug: torch is exchanged by hand and ``make test`` runs into undefined symbols."""
    stamp = setup_env.state()
    assert setup_env.up_to_date(stamp, setup_env.state())
    assert not setup_env.up_to_date(stamp, {**stamp, key: 'another'})
    assert not setup_env.up_to_date(stamp, {**stamp, key: None})
    assert not setup_env.up_to_date({}, stamp)
    (venv / 'python').unlink()
    assert not setup_env.up_to_date(stamp, stamp)


def test_a_stale_mmcv_of_the_same_version_is_noticed(venv):
    """Bug: ``pip install mmcv`` brings a wheel from pip's cache that was compiled for another torch."""
    stamp, info = setup_env.state(), site_packages(venv) / 'mmcv-2.1.0.dist-info'
    info.rmdir()
    assert not setup_env.up_to_date(stamp, setup_env.state())
    info.mkdir()
    assert setup_env.installed('mmcv').startswith('mmcv-2.1.0.dist-info ')
    assert not setup_env.up_to_date(stamp, setup_env.state())


def test_changed_pins_and_kernels_are_noticed(tmp_path, monkeypatch):
    """Bug: after ``git pull`` the environment has the packages and the kernels of before."""
    monkeypatch.setattr(setup_env, 'ROOT', copy_of_the_tools(tmp_path))
    kernel = tmp_path / 'swinv2_mm/models/kernels/csrc/vectors.h'
    kernel.parent.mkdir(parents=True)
    seen = []
    for path in (kernel, tmp_path / 'constraints.txt', tmp_path / 'tools/environment/uv.py'):
        with path.open('a') as file:
            file.write('// changed')
        seen.append(setup_env.state()['inputs'])
    assert len(set(seen)) == 3


def test_a_broken_or_moved_environment_is_made_again(venv):
    """Bug: Ctrl-C while ``python -m venv`` installs pip; or a moved checkout, whose scripts start another Python."""
    assert setup_env.usable({}) and setup_env.usable({'venv': str(venv)})
    assert not setup_env.usable({'venv': '/moved/.venv'})
    write_python(venv, 'exit 1')
    assert not setup_env.usable({})
    (venv / 'python').unlink()
    assert not setup_env.usable({})
