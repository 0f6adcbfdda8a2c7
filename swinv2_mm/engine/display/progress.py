"""Progress of a run: bars in a terminal; elsewhere (files, CI, Slurm) a few log lines with the time left."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.display.run_log import metrics_of
from swinv2_mm.registry import HOOKS

_SECONDS = 0.5  # between two updates of the bars
_FIRST_WAIT = 10.0  # seconds between the first two lines


class Lines:
    """Progress lines: after the first iteration, ten seconds later, then at doubling intervals.

    mmengine logs every so many iterations: on a slow machine the first line takes many minutes, and a shorter interval
    would flood a fast one. These lines are few in a run of any length, and the first one comes early.

    Args:
        total: Iterations of the run.
        done: Iterations that were done before it started.
        clock: Returns seconds.
    """

    def __init__(self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.clock = total, clock
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
        return f'{done} of {self.total} iterations, about {duration(left)} left'


def duration(seconds: float) -> str:
    """Seconds in words, to two units at most."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f'{seconds:.0f} s'
    if minutes < 100:
        return f'{minutes} min'
    if minutes < 48 * 60:
        return f'{minutes // 60} h {minutes % 60} min'
    hours = round(minutes / 60)
    return f'{hours // 24} d {hours % 24} h'


def _if_shown(method: Callable) -> Callable:
    """Call a method only while there are bars; remove the bars if the terminal is gone (a lost connection)."""

    @wraps(method)
    def guarded(self: 'ProgressHook', *arguments: Any, **named: Any) -> None:
        if self.bars:
            try:
                method(self, *arguments, **named)
            except OSError:
                self.stop()

    return guarded


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show the progress of a training or a test, with the time left and the loss.

    Without a terminal, :class:`Lines` are logged besides mmengine's.

    Above the bars, the screen shows warnings and the metrics of each validation; the log file has all lines. No thread
    redraws the bars: a data worker forked while it writes would inherit its lock, and wait forever. The cursor stays
    visible, so that a killed run leaves the terminal as it was.
    """

    priority = 'LOWEST'  # after the hook that logs the iteration

    bars: Any = None
    lines: Lines | None = None

    def before_train(self, runner: Runner) -> None:
        self._start(runner)
        self._begin_training(runner)
        self._begin_lines(runner.max_iters, runner.iter)

    @_if_shown
    def _begin_training(self, runner: Runner) -> None:
        self.whole = self.bars.add_task('training', total=runner.max_iters, completed=runner.iter, note='')
        self.bars.advance(self.whole, 0)  # starts its clock: an estimate after one iteration instead of two
        self.part = self.bars.add_task('', total=None, visible=False, note='')

    @_if_shown
    def before_train_epoch(self, runner: Runner) -> None:
        if runner.max_epochs > 1:  # otherwise the epoch is the whole run, as in a loop that counts iterations
            self._part(f'epoch {runner.epoch + 1}/{runner.max_epochs}', len(runner.train_dataloader))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        loss = runner.message_hub.log_scalars.get('train/loss')
        note = f'loss {loss.current():#.4g}' if loss else ''
        self._show_training(runner, note)
        self._log_line(runner, runner.iter + 1, note)

    @_if_shown
    def _show_training(self, runner: Runner, note: str) -> None:
        self.bars.update(self.whole, completed=runner.iter + 1, note=note)
        self._advance()

    @_if_shown
    def before_val_epoch(self, runner: Runner) -> None:
        self._part('validation', len(runner.val_dataloader))

    @_if_shown
    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self._advance()

    @_if_shown
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        where = f'epoch {runner.epoch}' if runner.max_epochs > 1 else f'iteration {runner.iter}'
        found = ', '.join(f'{name} {value:.4g}' for name, value in metrics_of(metrics or {}).items())
        self.bars.update(self.part, visible=False)
        self.bars.console.print(f'{where}: {found}', markup=False, highlight=False)

    def after_train(self, runner: Runner) -> None:
        self.stop()

    def before_test(self, runner: Runner) -> None:
        self._start(runner)
        self._begin_test(runner)
        self._begin_lines(len(runner.test_dataloader))

    @_if_shown
    def _begin_test(self, runner: Runner) -> None:
        self.part = self.bars.add_task('test', total=len(runner.test_dataloader), note='')

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence | None = None
    ) -> None:
        self._show_test(runner, batch_idx)
        self._log_line(runner, batch_idx + 1)

    @_if_shown
    def _show_test(self, runner: Runner, batch_idx: int) -> None:
        self._advance()
        if batch_idx + 1 == len(runner.test_dataloader):
            self.stop()  # the metrics are logged next

    def stop(self) -> None:
        """End the bars, and let loggers print again."""
        if self.bars:
            for handler, level, stream in self.handlers:
                handler.setLevel(level)
                handler.setStream(stream)
            bars, self.bars = self.bars, None
            with suppress(OSError):
                bars.stop()

    def _start(self, runner: Runner) -> None:
        """Show bars in place of log lines, if there is a terminal."""
        bars = _bars() if is_main_process() else None
        if bars is None:
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

    def _begin_lines(self, total: int, done: int = 0) -> None:
        self.lines = Lines(total, done) if self.bars is None and is_main_process() else None

    def _log_line(self, runner: Runner, done: int, note: str = '') -> None:
        line = self.lines and self.lines.line(done)
        if line:
            runner.logger.info(', '.join(filter(None, (line, note))))

    def _part(self, name: str, total: int) -> None:
        self.bars.reset(self.part, total=total, description=name, visible=True)

    def _advance(self) -> None:
        self.bars.advance(self.part)
        now = self.bars.get_time()
        if now - self.drawn >= _SECONDS:
            self.bars.refresh()
            self.drawn = now


@contextmanager
def screen_given_back(runner: Runner) -> Iterator[None]:
    """Restore the screen after a run, even if it fails: mmengine calls no hook then."""
    try:
        yield
    finally:
        for hook in runner.hooks:
            if isinstance(hook, ProgressHook):
                hook.stop()


def _bars() -> Any:
    """The bars, or None without a terminal that can move its cursor."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not sys.stdout.isatty():
        return None
    console = Console(file=sys.stdout)
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
        console=console,
        auto_refresh=False,
        expand=True,
        speed_estimate_period=600,
    )
