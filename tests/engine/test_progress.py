"""What a person sees in a terminal: bars, warnings above them, a screen that is given back."""

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

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from tiny_training import write_config

from swinv2_mm.engine.progress import ProgressHook
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
            from mmengine.logging import MMLogger

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


def test_a_terminal_that_goes_away_ends_no_training(monkeypatch):
    """Bug: a connection is lost, and the next picture of the bars raises out of the training."""

    class Gone:
        def advance(self, task):
            raise OSError('Input/output error')

        def stop(self):
            raise OSError('Input/output error')

    hook = ProgressHook()
    hook.bars, hook.part, hook.handlers = Gone(), 0, []
    hook.after_val_iter(None, 0)
    assert hook.bars is None
    hook.after_val_iter(None, 1)
