"""What a person sees: bars and warnings above them in a terminal that is given back, elsewhere lines; nowhere dumps."""

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
import time
import traceback
from itertools import pairwise
from types import SimpleNamespace

import pytest
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from rich.progress import Progress
from support.tiny_training import write_config

from swinv2_mm.engine.display import progress
from swinv2_mm.engine.display.progress import Lines, ProgressHook, counting
from swinv2_mm.engine.runs import prepare_training, train

BAR = '━'
WAITING = 'waiting for a signal'
LOG = "log_level = 'INFO'\ndefault_hooks['logger'] = dict(type='LoggerHook', interval=1)\n"


@HOOKS.register_module()
class SpeakHook(Hook):
    """Warn in front of one iteration, fail in front of another, wait for a signal in front of a third.

    Args:
        warn: Which.
        fail: Which.
        wait: Which.
    """

    def __init__(self, warn: int = -1, fail: int = -1, wait: int = -1):
        self.warn, self.fail, self.wait = warn, fail, wait

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.warn:
            runner.logger.warning('a warning of the logger')
            print('a line of a library')
        if runner.iter == self.fail:
            raise RuntimeError('broken')
        if runner.iter == self.wait:
            print(WAITING)
            time.sleep(60)
            raise RuntimeError('no signal came')


def in_terminal(work, keys=None):
    """Run something in a process of its own that has a terminal.

    Args:
        work: Called there.
        keys: What to type once a hook waits for a signal.

    Returns:
        All that was sent to the screen, without colours, and the status of the process.
    """
    child, terminal = pty.fork()
    if child == 0:
        status = 1
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 100, 0, 0))
            os.environ['TERM'] = 'xterm'
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
            sys.stdout, sys.stderr = os.fdopen(1, 'w', 1), os.fdopen(2, 'w', 1)  # pytest has taken the old ones
            status = work() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    seen = b''
    try:
        while piece := os.read(terminal, 1 << 16):
            seen += piece
            if keys and WAITING.encode() in seen:
                os.write(terminal, keys)
                keys = None
    except OSError:  # how Linux says that nobody writes there any more
        pass
    os.close(terminal)
    return re.sub(r'\x1b\[[\d;]*m', '', seen.decode()), os.waitpid(child, 0)[1]


def test_a_person_sees_bars_and_warnings_and_metrics(run_tool, tmp_path):
    """Bug: walls of lines, warnings lost or written into the bars, or a log file that lacks what the screen does."""
    extra = LOG + "custom_hooks.append(dict(type='SpeakHook', warn=5))\n"
    write_config(tmp_path, extra=extra)
    screen, status = in_terminal(lambda: run_tool('train', 'tiny.py', '--work-dir', 'run'))
    assert status == 0, screen
    lines = [line.rpartition('\x1b[2K')[2] for line in screen.splitlines()]  # what is left of each, after it is cleared
    assert any(line.endswith('WARNING - a warning of the logger') and BAR not in line for line in lines)
    assert 'a line of a library' in lines and any(line.startswith('epoch 2: error 0.') for line in lines)
    for shown in ('training', '12/12', 'left', 'loss 0.', 'epoch 3/3', 'validation'):
        assert shown in screen
    assert 'Epoch(train)' not in screen
    (text,) = [path.read_text() for path in (tmp_path / 'run').rglob('*.log')]
    assert text.count('Epoch(train)') == 12 and 'a warning of the logger' in text

    screen, status = in_terminal(lambda: run_tool('test', 'tiny.py', 'run/epoch_3.pth', '--work-dir', 'test'))
    assert status == 0, screen
    assert '2/2' in screen and 'Epoch(test) [1/2]' not in screen
    assert 'error 0.' in screen.splitlines()[-1]


def test_a_failure_gives_the_screen_back(own_process, tmp_path):
    """Bug: after an exception or Ctrl-C print() and the logger still write through the bars, or stay silent."""
    hook = "custom_hooks.append(dict(type='SpeakHook', {}=5))\n"
    fails = write_config(tmp_path, 'fails.py', extra=LOG + hook.format('fail'))
    waits = write_config(tmp_path, 'waits.py', extra=LOG + hook.format('wait'))

    def work(config):
        out, error = sys.stdout, sys.stderr
        try:
            train(prepare_training(config))
        except (RuntimeError, KeyboardInterrupt) as problem:
            assert (sys.stdout, sys.stderr) == (out, error)
            MMLogger.get_current_instance().info('said at last')
            print(type(problem).__name__)

    screen, status = in_terminal(lambda: work(fails))
    assert status == 0 and BAR in screen, screen
    assert 'INFO - said at last' in screen.splitlines()[-2] and screen.splitlines()[-1] == 'RuntimeError'
    screen, status = in_terminal(lambda: work(waits), keys=b'\x03')
    assert status == 0 and screen.splitlines()[-1] == 'KeyboardInterrupt', screen


def test_a_killed_run_leaves_the_cursor(own_process, tmp_path):
    """Bug: a shell without a cursor, since what kills a process lets it clean up nothing."""
    config = write_config(tmp_path, extra="custom_hooks.append(dict(type='KillHook', iteration=5))\n")
    screen, status = in_terminal(lambda: train(prepare_training(config)) and 0)
    assert os.WIFSIGNALED(status) and BAR in screen
    assert screen.rfind('\x1b[?25h') > screen.rfind('\x1b[?25l')


def test_elsewhere_lines_are_logged_as_always(run_tool, tmp_path, capsys, monkeypatch):
    """Bug: control sequences in files and in the logs of CI, which often pretends to be a terminal in colour."""
    monkeypatch.setenv('FORCE_COLOR', '1')
    write_config(tmp_path, extra=LOG)
    assert run_tool('train', 'tiny.py') == 0
    out = capsys.readouterr().out
    assert out.count('Epoch(train)') == 12 and '\x1b[2K' not in out and BAR not in out


DUMPS = ('System environment:', 'Config:\n', 'Hooks will be executed', 'paramwise_options')


def test_dumps_are_for_the_file(run_tool, tmp_path, capsys):
    """Bug: nine hundred lines of environment, config, hooks and parameters in front of the first that matters; or a log
    file without them, which a report of a problem needs.
    """
    build = MMLogger.__init__
    groups = 'optim_wrapper.update(paramwise_cfg=dict(bias_lr_mult=2.0))\n'
    for tool, arguments in (('train', []), ('test', ['work_dirs/train/epoch_3.pth'])):
        config = write_config(tmp_path, f'{tool}.py', LOG + groups)  # loggers of one second differ by their config
        assert run_tool(tool, config, *arguments) == 0
        out = capsys.readouterr().out
        (file,) = (tmp_path / 'work_dirs' / tool).rglob('*.log')
        text = file.read_text()
        for dump in DUMPS[: 4 if tool == 'train' else 3]:
            assert dump not in out and dump in text, dump
        for line in ('environment, config, hooks and parameters: see ', f'Epoch({tool})'):
            assert line in out and line in text
        assert str(file.relative_to(tmp_path)) in out
    assert MMLogger.__init__ is build  # loggers of other code are left alone


class Clock:
    """Tells the time that it is told."""

    now = 1000.0

    def __call__(self):
        return self.now


def lines_of_a_run(total, seconds, done=0):
    """The lines of a run and when they came, if iterations take so long."""
    clock = Clock()
    lines, seen = Lines(total, done, clock), []
    for iteration in range(done + 1, total + 1):
        clock.now += seconds
        line = lines.line(iteration)
        if line:
            seen.append((clock.now - 1000, line))
    return seen


def test_the_first_iteration_is_told_with_an_estimate():
    """Bug: five minutes without a line on a machine where an iteration takes 15 s, since a line is due after twenty."""
    (at, line), *_ = lines_of_a_run(1950, 15.0)
    assert (at, line) == (15.0, '1 of 1950 iterations, about 8:07:15 left')
    (_, line), *_ = lines_of_a_run(1950, 15.0, done=1000)  # resumed
    assert line == '1001 of 1950 iterations, about 3:57:15 left'


@pytest.mark.parametrize('seconds', [0.001, 0.5, 20.0])
def test_lines_come_in_growing_intervals(seconds):
    """Bug: a line per iteration on a slow machine, thousands in a long run; or none after the first minute."""
    seen = lines_of_a_run(int(24 * 3600 / seconds) if seconds > 0.1 else 100_000, seconds)
    times = [at for at, _ in seen]
    waits = [later - earlier for earlier, later in pairwise(times)]
    for number, wait in enumerate(waits):
        assert 10 * 2**number <= wait + 1e-6 and wait < 10 * 2**number + 2 * seconds
    assert len(seen) < 16
    assert seconds < 0.1 or len(seen) > 11


def test_the_estimate_forgets_the_first_iteration():
    """Bug: hours are announced for a day, since workers start and caches fill in the first iteration."""
    clock = Clock()
    lines = Lines(101, clock=clock)
    clock.now += 60
    assert lines.line(1) == '1 of 101 iterations, about 1:40:00 left'
    clock.now += 20
    assert lines.line(21) == '21 of 101 iterations, about 0:01:20 left'


def test_the_end_needs_no_estimate():
    clock = Clock()
    assert Lines(1, clock=clock).line(1) is None


def test_lines_are_logged_where_there_is_no_terminal(run_tool, tmp_path, capsys, monkeypatch):
    """Of several processes, by the first. Bug: bars are all there is, and a pipe or a file shows nothing."""
    write_config(tmp_path, 'lines.py', "log_level = 'INFO'\n")
    assert run_tool('train', 'lines.py', '--work-dir', 'run') == 0
    (text,) = [path.read_text() for path in (tmp_path / 'run').rglob('*.log')]
    for seen in (capsys.readouterr().out, text):
        assert len(re.findall(r' - 1 of 12 iterations, about \d+:\d\d:\d\d left, loss \d', seen)) == 1
    assert run_tool('test', 'lines.py', 'run/epoch_3.pth', '--work-dir', 'test') == 0
    assert len(re.findall(r' - 1 of 2 iterations, about \d+:\d\d:\d\d left\n', capsys.readouterr().out)) == 1
    monkeypatch.setattr(progress, 'is_main_process', lambda: False)
    assert run_tool('train', 'lines.py', '--work-dir', 'other') == 0
    assert 'iterations, about' not in capsys.readouterr().out


def test_bars_know_the_time_left_after_one_iteration(monkeypatch):
    """Bug: rich wants two steps for an estimate, which are minutes on a slow machine."""
    clock = Clock()
    hub = SimpleNamespace(log_scalars={})
    logger = SimpleNamespace(handlers=[])
    runner = SimpleNamespace(max_iters=11, iter=0, max_epochs=1, message_hub=hub, logger=logger)
    bars = Progress(get_time=clock, auto_refresh=False, disable=True)
    monkeypatch.setattr(progress, '_bars', lambda: bars)
    hook = ProgressHook()
    hook.before_train(runner)
    clock.now += 30
    hook.after_train_iter(runner, batch_idx=0)
    assert hook.bars.tasks[hook.whole].time_remaining == 300


def test_a_terminal_that_goes_away_ends_no_training(monkeypatch):
    """Bug: a connection is lost, and the next picture of the bars raises out of the training."""

    class Gone:
        def advance(self, task):
            raise OSError('Input/output error')

        def stop(self):
            raise OSError('Input/output error')

    hook = ProgressHook()
    hook.bars, hook.part, hook.handlers = Gone(), 0, []
    hook.after_val_iter(None, batch_idx=0)
    assert hook.bars is None
    hook.after_val_iter(None, batch_idx=1)


def test_counting_tells_the_time_left(capsys):
    """Bug: an hour of predictions without a line, or one for each of them."""
    with counting(1000, 'pictures') as advance:
        for _ in range(1000):
            advance()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('1 of 1000 pictures, about') and line.endswith('left')
