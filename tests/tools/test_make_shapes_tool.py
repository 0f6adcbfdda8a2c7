"""tools/make_shapes.py: plain output, errors in one line, and nothing left behind by a stopped run."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.tiny_fixtures import ROOT
from support.tiny_shapes import TINY, content

from swinv2_mm.datasets import write_shapes

TOOL = [sys.executable, str(ROOT / 'tools' / 'make_shapes.py')]
ENV = {**os.environ, 'PYTHONPATH': str(ROOT)}


def run_make_shapes(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*TOOL, *map(str, arguments)], env=ENV, capture_output=True, text=True, timeout=60, **options)


def test_the_tool_writes_says_so_and_does_not_repeat_itself(tmp_path):
    """Output piped to a file must be plain lines, and a second run must be free, so that scripts can just call it."""
    arguments = [tmp_path / 'a/set', '--size', 32, '--num-train', 3, '--num-val', 2]
    first, second = run_make_shapes(*arguments), run_make_shapes(*arguments)
    assert first.returncode == second.returncode == 0 and first.stderr == second.stderr == ''
    assert first.stdout.startswith('wrote 3 training and 2 validation images')
    assert '\x1b' not in first.stdout
    assert second.stdout == f'{tmp_path / "a/set"} is already there\n'
    assert not write_shapes(TINY, tmp_path / 'a/set')  # the tool's arguments reach the package


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--size', '8'], 'size=8'),
        (['--size', 'big'], 'big'),
        (['--classes', 'disk,blob'], "'blob'"),
        (['--classes', ','], 'classes'),
        (['--num-trian', '3'], '--num-trian'),
    ],
)
def test_the_tool_refuses_bad_arguments_in_one_line(tmp_path, arguments, words, monkeypatch, capsys):
    """A traceback, or a screen of usage, hides the one word that is wrong."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import make_shapes

    monkeypatch.setattr(make_shapes.signal, 'signal', lambda *_: None)
    try:
        code = make_shapes.main([str(tmp_path / 'set'), *arguments])
    except SystemExit as stopped:  # argparse's own way out
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith('error: ') and error.count('\n') == 1 and words in error
    assert list(tmp_path.iterdir()) == []


def test_the_tool_refuses_a_foreign_folder(tmp_path):
    """Exit code 2 and the remedy, so that a script stops before it trains on what happens to lie there."""
    (tmp_path / 'notes.txt').write_text('mine')
    done = run_make_shapes(tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and 'choose another' in done.stderr
    assert content(tmp_path) == {'notes.txt': b'mine'}


def test_the_tool_says_when_the_disk_does_not_take_it(tmp_path):
    """A full disk (here: a limit on file size, which root cannot pass either) is one line, and no half set remains."""
    done = run_make_shapes(
        tmp_path / 'set', '--size', 64, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'error: cannot write {tmp_path / "set"}') and done.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'file').write_text('mine')
    done = run_make_shapes(tmp_path / 'file' / 'set')
    assert done.returncode == 1 and done.stderr.startswith('error: cannot write') and done.stderr.count('\n') == 1


def start_and_signal(out: Path, signum: int) -> subprocess.CompletedProcess:
    """Start the tool on a set too large to finish, and send a signal once it writes images."""
    # A job in the background of a shell starts with SIGINT ignored, and so would its children.
    process = subprocess.Popen(
        [*TOOL, str(out), '--size', '32', '--num-train', '1000000'],
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not list(out.parent.glob('.set.tmp-*/images/training/000003.png')):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(('signum', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_nothing(tmp_path, signum, code):
    """Schedulers stop jobs with SIGTERM, which ends Python without running any cleanup unless it is caught."""
    done = start_and_signal(tmp_path / 'set', signum)
    assert done.returncode == code and 'Traceback' not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_only_a_temporary_folder(tmp_path):
    """After SIGKILL the name itself must stay free, and the next run must not mind the remains."""
    out = tmp_path / 'set'
    start_and_signal(out, signal.SIGKILL)
    assert not out.exists()
    [remains] = tmp_path.iterdir()
    assert remains.name.startswith('.set.tmp-') and not (remains / 'shapes.json').exists()
    assert write_shapes(TINY, out)
    assert remains.exists()
