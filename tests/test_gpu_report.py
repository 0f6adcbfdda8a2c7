"""``make gpu`` on a CPU: all parts, their time, a part that fails, and what is written."""

import json
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, load_script

TESTS = """
import pytest

def test_one(): pass

@pytest.mark.parametrize('n', range(3))
def test_two(n): pytest.skip('no GPU here' if n else 'no time left')

def test_three(): assert 1 == 2
"""


@pytest.fixture
def gpu():
    pytest.importorskip('triton', reason='Triton exists for Linux only')
    return load_script(ROOT / 'benchmarks' / 'gpu.py')


@pytest.fixture
def run(gpu, tmp_path, monkeypatch):
    """Run the script with other commands for some parts; its exit status, report and table."""

    def call(minutes, **instead):
        own = gpu.commands

        def commands(*arguments):
            found = own(*arguments) | instead
            return found | dict(
                backbone=[*found['backbone'], '--modes', 'inference', '--peers']
            )  # seconds, not minutes

        monkeypatch.setattr(gpu, 'commands', commands)
        arguments = ['--device', 'cpu', '--minutes', str(minutes), '--out', str(tmp_path / 'out')]
        monkeypatch.setattr(sys, 'argv', ['gpu.py', *arguments, '--tests', str(tmp_path / 'test_these.py')])
        status = gpu.main()
        written = {path.suffix: path for path in (tmp_path / 'out').iterdir()}
        assert written.keys() == {'.json', '.md', '.png'} and {path.stem for path in written.values()} == {'gpu_cpu'}
        return status, json.loads(written['.json'].read_text()), written['.md'].read_text()

    return call


def test_a_part_that_fails_loses_neither_the_others_nor_the_exit_status(run, tmp_path):
    """Bug: ten minutes of a lent GPU are lost with the last part, or a failed test ends in status 0."""
    (tmp_path / 'test_these.py').write_text(TESTS)
    status, found, page = run(10, compiled=[sys.executable, '-c', 'raise SystemExit(3)'])
    assert status == 1
    assert found['tests'] == {
        'passed': 1,
        'failed': {'test_these::test_three': 'assert 1 == 2'},
        'skipped': {f'test_these::test_two[{n}]': 'no GPU here' for n in (1, 2)},
    }
    assert found['left_out'] == ['test_these::test_two[0]']
    assert found['failed'].keys() == {'compiled'} and 'exit status 3' in found['failed']['compiled']
    forward, _ = found['attention']
    assert forward['sdpa_ms'] > 0 and forward['triton_ms'] > 0
    assert (forward['window'], forward['dtype'], forward['pass']) == (8, 'bfloat16', 'forward')
    assert {'device', 'capability', 'torch'} <= found.keys()
    assert [row['mode'] for row in found['rows']] == ['inference']
    for line in (
        'Tests: 1 passed, 1 failed, 2 skipped.',
        '- skipped: test_these::test_two (2): no GPU here',
        '- test_these::test_three: assert 1 == 2',
        '- compiled: exit status 3',
        '| 8 | bfloat16 | forward | ',
        '| tiny w8 1x32x32 bfloat16 inference | ',
    ):
        assert line in page


def test_no_part_takes_the_time_of_the_others(run, gpu, tmp_path, monkeypatch):
    """Parts that hang are stopped with their children, and named. Bug: a kernel that hangs takes the whole time."""
    monkeypatch.setattr(gpu, 'MARGIN', 1)
    pid = tmp_path / 'pid'
    hang = 'import pathlib, subprocess, time\n'
    hang += f'child = subprocess.Popen(["sleep", "60"]); pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n'
    hang += 'time.sleep(60)'
    command = [sys.executable, '-c', hang]
    start = time.monotonic()
    status, found, page = run(0.1, tests=command, attention=command, backbone=command, compiled=command)
    assert time.monotonic() - start < 45  # of 240
    assert status == 1 and found['failed'].keys() == {'tests', 'attention', 'backbone', 'compiled'}
    assert page.count('stopped, since its time was over') == 4
    child = Path('/proc', pid.read_text(), 'stat')
    assert not child.exists() or child.read_text().rpartition(')')[2].split()[0] == 'Z'


def test_tests_without_time_are_skipped_by_name(monkeypatch):
    """Bug: the last tests are missing from the report, and nobody knows that they did not run."""
    hook = load_script(ROOT / 'tests' / 'conftest.py').pytest_runtest_setup
    hook(None)
    monkeypatch.setenv('SWINV2_MM_TESTS_UNTIL', str(time.time() + 60))
    hook(None)
    monkeypatch.setenv('SWINV2_MM_TESTS_UNTIL', str(time.time() - 1))
    with pytest.raises(pytest.skip.Exception, match='no time left'):
        hook(None)


def test_our_failures_count_and_those_of_peers_do_not(gpu):
    """Bug: status 1 because of another package, or 0 where our kernel crashed."""
    row = dict(arch='tiny', window=8, batch=1, size='64x64', dtype='float16', mode='training', compile=False)
    why = {'ours triton': 'RuntimeError: illegal', 'timm': 'no', 'ours': "attn_backend='x' cannot be used: why"}
    stage = dict(dtype='float16', window=8, way='triton', failed='RuntimeError: bad')
    found = dict(
        failed={}, tests=None, rows=[dict(row, failed=why)], attention_by_stage=[stage, stage | dict(failed='')]
    )
    assert gpu.problems(found) == [
        'tiny w8 1x64x64 float16 training, ours triton: RuntimeError: illegal',
        'float16 window 8, triton: RuntimeError: bad',
    ]


def test_without_a_gpu_it_says_so(gpu, monkeypatch):
    """Bug: a traceback, or a file of a GPU with the numbers of a CPU."""
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr(sys, 'argv', ['gpu.py'])
    with pytest.raises(SystemExit, match='needs a CUDA GPU, and there is none'):
        gpu.main()
