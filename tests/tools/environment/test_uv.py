"""tools/environment/uv.py: pip's settings, progress, and what is left of a stopped run."""

import os
import sys
import time
from pathlib import Path

import pytest
from environment import uv

PIP_CONFIG = """:env:.find-links='/my wheels /more'
global.find-links='/opt/wheels'
global.index-url='https://mirror/simple'
global.extra-index-url='file:///one\\nfile:///two'
install.constraint='/etc/constraints.txt'
global.cert='/etc/ca.pem'
download.retries='7'
"""


def test_pips_settings_are_handed_to_uv():
    """Bug: behind a mirror or on a cluster pip is configured, and uv goes to pypi.org and fails."""
    found = uv.settings(PIP_CONFIG.replace('/my wheels', '/wheels'), {})
    assert found == {
        'UV_FIND_LINKS': '/wheels,/more',  # a variable wins over a file
        'UV_DEFAULT_INDEX': 'https://mirror/simple',
        'UV_INDEX': 'file:///one file:///two',
        'UV_CONSTRAINT': '/etc/constraints.txt',
        'SSL_CERT_FILE': '/etc/ca.pem',
        'UV_INDEX_STRATEGY': 'unsafe-best-match',
        'UV_SYSTEM_CERTS': '1',
    }
    assert 'UV_INDEX' not in uv.settings(PIP_CONFIG, {'UV_INDEX': 'https://mine'})
    assert uv.settings("global.no-index='true'\n", {})['UV_OFFLINE'] == '1'
    assert 'UV_OFFLINE' not in uv.settings("global.no-index='false'\n", {})


@pytest.mark.parametrize(
    ('line', 'note'),
    [
        ('[1/77] c++ -c a.cpp', 'compiled 1 of 77 files'),
        ('  [1/77] c++ -c a.cpp\n', 'compiled 1 of 77 files'),
        ('DEBUG [1/77] c++ -c a.cpp', 'compiled 1 of 77 files'),
        ('[nothing]', ''),
        ('warning: x [1/7] y', ''),
        ('[notice] 3/4', ''),
        ('[1/7]: error', ''),
        ('', ''),
        ('Downloading numpy (16.0MiB)', 'downloading numpy'),
        ('   Building mmcv==2.1.0', 'building mmcv==2.1.0'),
    ],
)
def test_progress_is_read_from_what_uv_and_ninja_print(line, note):
    """Bug: uv puts its log level before the lines, and nothing is shown; or anything in brackets is progress."""
    assert uv.note_of(line) == note


def test_a_build_is_told_at_once_and_its_progress_now_and_then(tmp_path, monkeypatch, capsys):
    """Bug: uv prints nothing for three minutes, and people stop it; or every file has a line."""
    lines = 'Building mmcv==2.1.0\nDEBUG [1/2] a\nDEBUG [2/2] b'
    uv.run(['printf', lines], tmp_path / 'log', os.environ)
    assert capsys.readouterr().out.splitlines()[0].endswith('] building mmcv==2.1.0')
    monkeypatch.setattr(uv, 'SECONDS_BETWEEN_NOTES', -1)
    uv.run(['printf', lines], tmp_path / 'log', os.environ)
    assert [line.split('] ')[1] for line in capsys.readouterr().out.splitlines()] == [
        'building mmcv==2.1.0',
        'compiled 1 of 2 files',
        'compiled 2 of 2 files',
    ]


def runs(state):
    """Whether a process runs, from its file in /proc: it is not gone, nor waiting for init to collect it."""
    try:
        return ' Z ' not in state.read_text()
    except OSError:
        return False


def test_an_interrupt_stops_the_compilers_too(tmp_path, monkeypatch):
    """Bug: after Ctrl-C a dozen compilers run on, and write into the environment."""
    pids = []

    def note_of(line):
        pids.append(int(line))
        raise KeyboardInterrupt

    monkeypatch.setattr(uv, 'note_of', note_of)
    with pytest.raises(KeyboardInterrupt):
        uv.run(['sh', '-c', 'sleep 60 & echo $!; wait'], tmp_path / 'log', os.environ)
    state, end = Path(f'/proc/{pids[0]}/stat'), time.monotonic() + 20
    while runs(state) and time.monotonic() < end:  # the signal has been sent, and may be on its way
        time.sleep(0.01)
    assert not runs(state)


def test_output_without_a_final_newline_is_kept(tmp_path):
    """Bug: the last line, which says what failed, is lost."""
    status, output = uv.run(['sh', '-c', 'echo one; printf two; exit 3'], tmp_path / 'log', os.environ)
    assert (status, output) == (3, 'one\ntwo')
    assert (tmp_path / 'log').read_text().endswith('one\ntwo\n')


@pytest.mark.parametrize(
    ('said', 'told'),
    [
        ('No module named ensurepip', r'apt-get install python3\.\d+-venv'),
        ('[Errno 13] Permission denied', r'cannot create the environment .*:\n\[Errno 13\] Permission denied$'),
    ],
)
def test_a_python_without_venv_names_the_debian_package(said, told, tmp_path, monkeypatch):
    """Bug: Debian's Python has no ensurepip, and ``python -m venv`` ends in a traceback."""
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    with pytest.raises(SystemExit, match=told):
        uv.make_environment(tmp_path / '.venv')
