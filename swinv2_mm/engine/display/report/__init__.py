"""The report: a picture of one run, or of several on the same axes, drawn from their logs."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.engine.display.report.run_log import MAIN, METRICS, Run, read_run, series, validations
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS

# Okabe and Ito's colours, for colour-blind people, without the yellow, which is too light for a line.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_LINES = ('-', '--', ':', '-.')
_SUFFIXES = ('.png', '.svg', '.pdf')
_WINDOW = 101  # the longest running median, in log records
_STYLE = {
    'font.size': 10,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'legend.fontsize': 9,
    'legend.framealpha': 0.8,
}


def draw_report(runs: Sequence[Run], out: Path) -> None:
    """Draw one run, or the numbers that compare several, into a picture that appears complete or not at all."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        panels = _panels(runs)
        rows = math.ceil(len(panels) / 2)
        figure = Figure(figsize=(13, 0.8 + 3.1 * rows), layout='constrained')
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, 2, sharex=True, squeeze=False).flat
        for axis, panel in zip(axes, panels, strict=False):
            panel(axis)
            axis.tick_params(labelbottom=True)
        axes[0].set_xlim(left=0)
        for axis in axes[len(panels) :]:
            axis.remove()
        for axis in axes[max(0, len(panels) - 2) : len(panels)]:
            axis.set_xlabel('iteration')
        length = runs[0].epoch_length if len(runs) == 1 else None
        for axis in axes[:2] if length else ():
            top = axis.secondary_xaxis('top', functions=(lambda i: i / length, lambda epoch: epoch * length))
            top.set_xlabel('epoch', fontsize=9)
            top.tick_params(labelsize=9)
        figure.suptitle('\n'.join(map(_headline, runs)), fontsize=12, x=0.01, ha='left')
        with replacing(out) as file:
            figure.savefig(file, dpi=100, format=out.suffix[1:].lower())


def plot_runs(work_dirs: Sequence[str], out: str | None = None) -> Path:
    """Draw the picture of one run, by default ``report.png`` in its work dir, or of several; return its path.

    Raises:
        UserError: A folder holds no log of a training, or ``out`` cannot be a picture.
    """
    if out is None and len(work_dirs) > 1:
        raise UserError('--out is missing: which picture should compare the runs? As in --out comparison.png.')
    path = Path(work_dirs[0], 'report.png') if out is None else Path(out).expanduser()
    if path.suffix.lower() not in _SUFFIXES or path.is_dir():
        raise UserError(f'--out {out}: name a picture, a file that ends in {", ".join(_SUFFIXES)}.')
    runs = [read_run(Path(folder).expanduser()) for folder in work_dirs]
    if len({run.name for run in runs}) < len(runs):
        for run, folder in zip(runs, work_dirs, strict=True):
            run.name = str(folder)
    try:
        draw_report(runs, path)
    except OSError as error:
        raise UserError(f'--out {path} cannot be written: {error.strerror or error}.') from error
    return path


@HOOKS.register_module()
class ReportHook(Hook):
    """Draw ``report.png`` into the work dir after training, and after validations; without any, after epochs.

    Before the end only if drawing has taken less than a hundredth of the time so far. A failure is only a warning: it
    never stops a training.
    """

    priority = 'LOWEST'  # after the hook that logs the validation

    def before_train(self, runner: Runner) -> None:
        self.began, self.spent = monotonic(), 0.0

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        # A validation on its own has no training around it.
        if hasattr(self, 'began') and self.spent <= 0.01 * (monotonic() - self.began):
            self.after_train(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        if runner.val_loop is None:
            self.after_val_epoch(runner)

    def after_train(self, runner: Runner) -> None:
        if not is_main_process():
            return
        began = monotonic()
        try:
            draw_report([read_run(runner.work_dir)], Path(runner.work_dir, 'report.png'))
        except UserError:
            pass  # the training was shorter than the interval of its log
        except Exception as error:
            runner.logger.warning(f'report.png was not drawn: {type(error).__name__}: {error}')
        self.spent += monotonic() - began


def _panels(runs: Sequence[Run]) -> list[Callable[[Any], None]]:
    """The panels to draw; numbers that every run should have get a panel even if they are missing."""
    one = runs[0] if len(runs) == 1 else None
    logged = set().union(*(run.train[-1] for run in runs))

    def of_all(name: str) -> list[tuple[str, Run, str]]:
        return [(run.name, run, name) for run in runs]

    rates = [(name, run, name) for run in runs for name in sorted(run.train[-1]) if f'.{name}'.endswith('.lr')]
    times = [('iteration', one, 'time'), ('of it waiting for data', one, 'data_time')] if one else of_all('time')
    panels = [partial(_draw_loss, runs=runs), partial(_draw_metrics, runs=runs)]
    if one and (parts := _parts(one)):
        shown = parts[: len(_COLOURS)]
        some = '' if shown == parts else f'the largest {len(shown)} of {len(parts)} '
        panels.append(partial(_curves, title=f'{some}parts of the loss', wanted=[(name, one, name) for name in shown]))
    legend = one is not None and len(rates) > 1
    panels.append(partial(_curves, title='learning rate', wanted=rates, smooth=False, legend=legend))
    if 'grad_norm' in logged:
        panels.append(partial(_curves, title='norm of the gradient', wanted=of_all('grad_norm'), legend=False))
    panels.append(partial(_curves, title='seconds per iteration', wanted=times, legend=one is not None))
    if 'memory' in logged:
        title = 'largest memory of the GPU, MB'
        panels.append(partial(_curves, title=title, wanted=of_all('memory'), smooth=False, legend=False))
    return panels


def _draw_loss(axis: Any, runs: Sequence[Run]) -> None:
    _curves(axis, 'loss', [(run.name if len(runs) > 1 else 'loss', run, 'loss') for run in runs])
    for run in runs:
        x, y = series(run.train, 'loss')
        lost = x[~np.isfinite(y)]
        if lost.size:
            high, label = np.full(lost.size, 0.97), f'not finite, from iteration {lost[0]:.0f} on'
            axis.plot(lost, high, 'x', color='red', transform=axis.get_xaxis_transform(), label=label)
            axis.legend()


def _draw_metrics(axis: Any, runs: Sequence[Run]) -> None:
    axis.set_title('validation', loc='left')
    low = 0.0
    for index, run in enumerate(runs):
        found, name_of_run = validations(run), ''
        if len(runs) > 1:
            name_of_run = f'{run.name}: '
            found = {name: found[name] for name in MAIN if name in found} or dict([*found.items()][:1])
        for number, (name, (x, y)) in enumerate(found.items()):
            colour, style = (number, index) if len(runs) == 1 else (index, number)
            colour, style = _COLOURS[colour % len(_COLOURS)], _LINES[style % len(_LINES)]
            low = min([low, *y[np.isfinite(y)]])
            known = name in METRICS and np.isfinite(y).any()
            at = int(np.nanargmax(y)) if known else len(y) - 1
            label = f'{name_of_run}{name}: {"best" if known else "last"} {_number(y[at])}'
            axis.plot(x, y, marker='o', ms=4, color=colour, ls=style, label=label)
            if known:
                axis.plot(x[at], y[at], marker='*', ms=14, color=colour, mec='white', zorder=3)
    if axis.lines:
        axis.margins(y=0.1)
        axis.set_ylim(bottom=0 if low >= 0 else None)
        axis.legend(loc='lower right')
    else:
        _say_nothing(axis, 'no validation yet')


def _curves(
    axis: Any, title: str, wanted: Sequence[tuple[str, Run, str]], smooth: bool = True, legend: bool = True
) -> None:
    """Draw series (label, run, name): thin as logged, thick as a median, on a log scale where they span a decade."""
    axis.set_title(title, loc='left')
    low, high = math.inf, 0.0
    for index, (label, run, name) in enumerate(wanted):
        x, y = series(run.train, name)
        finite = y[np.isfinite(y)]
        if not finite.size:
            continue
        middle = running_median(y) if smooth else y
        colour, style = _COLOURS[index % len(_COLOURS)], _LINES[index // len(_COLOURS) % len(_LINES)]
        axis.plot(x, np.where(np.isfinite(y), y, np.nan), color=colour, lw=0.8, alpha=0.35)
        axis.plot(x, middle, color=colour, ls=style, lw=1.8, label=label, marker='o' if len(x) == 1 else None)
        low, high = min(low, finite.min()), max(high, finite.max())
    if not axis.lines:
        _say_nothing(axis, 'not in the log')
        return
    if low > 0 and high / low > 10:
        axis.set_yscale('log')
        axis.set_ylim(bottom=max(low * 0.8, high * 1e-4))  # a rate that ends at 0 would take the whole height
    elif low >= 0:
        axis.set_ylim(0, high * 1.08 or 1)
    for begin in {begin for _, run, _ in wanted for begin in run.resumed}:
        axis.axvline(begin, color='grey', lw=0.8, ls=':', zorder=0)
    if legend:
        axis.legend(ncols=2 if len(wanted) > 3 else 1)


def running_median(values: np.ndarray) -> np.ndarray:
    """The median of a twentieth of all values around each one, without those that are not finite."""
    half = min(len(values) // 20, _WINDOW) // 2
    padded = np.pad(np.where(np.isfinite(values), values, np.nan), half, constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    medians = np.full(len(values), np.nan)
    some = np.isfinite(windows).any(1)
    medians[some] = np.nanmedian(windows[some], 1)
    return medians


def _parts(run: Run) -> list[str]:
    """The parts of the loss, the largest first, without those of a decoder's inner layers (``d0.loss_cls``)."""
    sizes = {
        name: -float(np.nan_to_num(np.median(series(run.train, name)[1])))
        for name in {*run.train[0], *run.train[-1]}
        if 'loss' in name and name not in ('loss', 'loss_scale') and not re.match(r'd\d+\.', name)
    }
    return sorted(sizes, key=lambda name: (sizes[name], name))


def _say_nothing(axis: Any, words: str) -> None:
    axis.set_facecolor('0.94')
    axis.grid(False)
    axis.set_yticks([])
    axis.text(0.5, 0.5, words, transform=axis.transAxes, ha='center', va='center', color='0.35')


def _headline(run: Run) -> str:
    last = run.train[-1]
    parts = [f'iteration {last["iter"]}' + (f', epoch {last["epoch"]}' if run.epoch_length else '')]
    for name, (x, y) in validations(run).items():
        if name in MAIN and np.isfinite(y).any():
            at = x[int(np.nanargmax(y))]
            when = f'epoch {at / run.epoch_length:.0f}' if run.epoch_length else f'iteration {at:.0f}'
            parts.append(f'best {name} {_number(np.nanmax(y))} ({when})')
    return f'{run.name}: {", ".join(parts)}'


def _number(value: float) -> str:
    return f'{value:.3f}' if abs(value) < 1 else f'{value:.4g}'
