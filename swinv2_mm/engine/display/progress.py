"""Progress of a run: bars in a terminal; elsewhere (files, CI, Slurm) a few log lines with the time left."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from operator import attrgetter
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.display.report.run_log import metrics_of
from swinv2_mm.engine.mmengine_internals import filtered_screen
from swinv2_mm.errors import say
from swinv2_mm.registry import HOOKS

_SECONDS = 0.5  # between two updates of the bars
_FIRST_WAIT = 10.0  # seconds between the first two lines
# How mmengine begins messages of hundreds of lines, after line breaks and dashes.
_DUMPS = ('System environment:', 'Config:', 'Hooks will be executed in the following order:', 'paramwise_options -- ')


def dumps_in_file_only() -> AbstractContextManager[None]:
    """Keep mmengine's dumps off the screen, for the loggers that runners build in this context."""

    def is_no_dump(record: logging.LogRecord) -> bool:
        return record.levelno != logging.INFO or not str(record.msg).lstrip('\n-').startswith(_DUMPS)

    return filtered_screen(is_no_dump)


class Lines:
    """Progress lines: after the first iteration, ten seconds later, then at doubling intervals.

    mmengine logs every so many iterations: on a slow machine the first line takes many minutes, and a shorter interval
    would flood a fast one. These lines are few in a run of any length, and the first one comes early. Of all ``total``
    iterations some may be ``done`` already; ``clock`` returns seconds, ``what`` are the things that are counted.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic, what: str = 'iterations'
    ) -> None:
        self.total, self.clock, self.what = total, clock, what
        self.origin = done, clock()
        self.due, self.wait = 0.0, _FIRST_WAIT
        self.warm = False

    def line(self, done: int) -> str | None:
        """The line for this many iterations done, or None if none is due."""
        now = self.clock()
        before, start = self.origin
        left = (now - start) / (done - before) * (self.total - done)
        if not self.warm:
            self.warm, self.origin = True, (done, now)  # the first iteration also starts workers and fills caches
            self.due = now
        if now < self.due or done == self.total:
            return None
        self.due, self.wait = now + self.wait, 2 * self.wait
        return f'{done} of {self.total} {self.what}, about {timedelta(seconds=round(left))} left'


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show the progress of a training or a test, with the time left and the loss.

    Above the bars, the screen shows warnings and the metrics of each validation; the log file has all lines. No thread
    redraws the bars: a data worker forked while it writes would inherit its lock, and wait forever. The cursor stays
    visible, so that a killed run leaves the terminal as it was. Without a terminal, :class:`Lines` are logged.
    """

    priority = 'LOWEST'  # after the hook that logs the iteration

    bars: Any = None
    whole: Any = None
    part: Any = None
    lines: Lines | None = None

    def before_train(self, runner: Runner) -> None:
        self._start(runner, runner.max_iters, runner.iter)
        self.whole = self._draw('add_task', 'training', total=runner.max_iters, completed=runner.iter, note='')
        self._draw('advance', self.whole, 0)  # starts its clock: an estimate after one iteration instead of two
        self.part = self._draw('add_task', '', total=None, visible=False, note='')

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.max_epochs > 1:  # otherwise the epoch is the whole run, as in a loop that counts iterations
            done = getattr(runner.train_loop, 'first', 0)  # in a run that goes on inside of an epoch
            self._part(f'epoch {runner.epoch + 1}/{runner.max_epochs}', len(runner.train_dataloader), done)

    def after_train_iter(self, runner: Runner, **_: Any) -> None:
        loss = runner.message_hub.log_scalars.get('train/loss')
        note = f'loss {loss.current():#.4g}' if loss else ''
        self._draw('update', self.whole, completed=runner.iter + 1, note=note)
        self._advance()
        self._log_line(runner, runner.iter + 1, note)

    def before_val_epoch(self, runner: Runner) -> None:
        self._part('validation', len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, **_: Any) -> None:
        self._advance()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        where = f'epoch {runner.epoch}' if runner.max_epochs > 1 else f'iteration {runner.iter}'
        found = ', '.join(f'{name} {value:.4g}' for name, value in metrics_of(metrics or {}).items())
        self._draw('update', self.part, visible=False)
        self._draw('console.print', f'{where}: {found}', markup=False, highlight=False)

    def after_train(self, runner: Runner) -> None:
        self.stop()

    def before_test(self, runner: Runner) -> None:
        total = len(runner.test_dataloader)
        self._start(runner, total)
        self.part = self._draw('add_task', 'test', total=total, note='')

    def after_test_iter(self, runner: Runner, batch_idx: int, **_: Any) -> None:
        self._advance()
        if batch_idx + 1 == len(runner.test_dataloader):
            self.stop()  # the metrics are logged next
        self._log_line(runner, batch_idx + 1)

    def stop(self) -> None:
        """End the bars, and let loggers print again."""
        if self.bars:
            for handler, level, stream in self.handlers:
                handler.setLevel(level)
                handler.setStream(stream)
            bars, self.bars = self.bars, None
            with suppress(OSError):
                bars.stop()

    def _start(self, runner: Runner, total: int, done: int = 0) -> None:
        """Show bars in place of log lines, if there is a terminal."""
        bars = _bars() if is_main_process() else None
        if bars is None:
            self.lines = Lines(total, done) if is_main_process() else None
            return
        self.handlers = [
            (handler, handler.level, handler.stream)
            for handler in runner.logger.handlers
            if type(handler) is logging.StreamHandler
        ]  # a FileHandler is one, too
        bars.start()
        bars.console.show_cursor(True)
        for handler, level, _ in self.handlers:
            handler.setLevel(max(level, logging.WARNING))
            handler.setStream(sys.stdout)  # rich has put itself there, and prints above the bars
        self.bars, self.drawn = bars, 0.0

    def _draw(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of the bars, while there are any; remove them if the terminal is gone (a lost connection)."""
        try:
            return self.bars and attrgetter(method)(self.bars)(*arguments, **named)
        except OSError:
            self.stop()

    def _part(self, name: str, total: int, done: int = 0) -> None:
        self._draw('reset', self.part, total=total, completed=done, description=name, visible=True)

    def _advance(self) -> None:
        self._draw('advance', self.part)
        if self.bars and time.monotonic() - self.drawn >= _SECONDS:
            self._draw('refresh')
            self.drawn = time.monotonic()

    def _log_line(self, runner: Runner, done: int, note: str = '') -> None:
        line = self.lines and self.lines.line(done)
        if line:
            runner.logger.info(', '.join(filter(None, (line, note))))


@contextmanager
def screen_given_back(runner: Runner) -> Iterator[None]:
    """Restore the screen after a run, even if it fails: mmengine calls no hook then."""
    try:
        yield
    finally:
        for hook in runner.hooks:
            if isinstance(hook, ProgressHook):
                hook.stop()


@contextmanager
def counting(total: int, what: str) -> Iterator[Callable[[], None]]:
    """Show how many of ``total`` things are done and the time left, in a bar, or in :class:`Lines` on stderr.

    Yields:
        A function to call after each of them.
    """
    bars, lines, done = _bars(), Lines(total, what=what), 0
    task, drawn = bars and bars.add_task(what, total=total, note=''), 0.0

    def advance() -> None:
        nonlocal done, drawn
        done += 1
        if bars:
            bars.advance(task)
            if time.monotonic() - drawn >= _SECONDS or done == total:
                drawn = time.monotonic()
                with suppress(OSError):  # the terminal is gone
                    bars.refresh()
        elif done < total and (line := lines.line(done)):
            say(line)

    with bars or nullcontext():
        if bars:
            bars.console.show_cursor(True)
        yield advance


def _bars() -> Any:
    """The bars, or None without a terminal that can move its cursor."""
    from rich import progress
    from rich.console import Console

    console = Console(file=sys.stdout)
    # FORCE_COLOR makes rich believe in a terminal.
    if not sys.stdout.isatty() or not console.is_terminal or console.is_dumb_terminal:
        return None
    return progress.Progress(
        progress.TextColumn('{task.description}'),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn('left'),
        progress.TimeRemainingColumn(),
        progress.TextColumn('{task.fields[note]}'),
        console=console,
        auto_refresh=False,
        expand=True,
        speed_estimate_period=600,
    )
