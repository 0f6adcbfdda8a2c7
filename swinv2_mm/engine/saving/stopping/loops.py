"""Training loops that end after any iteration when they are told to, and go on behind it when the run is resumed."""

import signal
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from swinv2_mm.engine.mmengine_internals import lazy_batches, set_train_loop, train_loop_config
from swinv2_mm.engine.saving.checkpoint_hook import CheckpointHook
from swinv2_mm.engine.saving.place import batches_to_skip, note_place
from swinv2_mm.engine.saving.stopping.agreement import Agreement
from swinv2_mm.engine.saving.stopping.order import EndlessBatches, ordered, remembers, spare_workers
from swinv2_mm.engine.saving.stopping.request import TIME_IS_UP
from swinv2_mm.errors import ToldToEnd, UserError


def set_loop(runner: Runner, max_time: str | None = None) -> bool:
    """Replace mmengine's training loop of a runner, which has not been built yet.

    Returns:
        Whether the run can end inside of an epoch: the config has neither a loop nor a checkpoint hook of its own.

    Raises:
        UserError: It cannot, and there is a time limit.
    """
    config = dict(train_loop_config(runner))
    kinds = {'EpochBasedTrainLoop': EpochLoop, 'IterBasedTrainLoop': IterLoop}
    kind = kinds.get(str(config.pop('type', None)).rpartition('.')[2])
    if 'by_epoch' in config:
        kind = EpochLoop if config.pop('by_epoch') else IterLoop
    if kind is not None:
        set_train_loop(runner, config | {'type': kind})
    can = kind is not None and _checkpoint_hook(runner) is not None
    if max_time and not can:
        key = 'train_cfg' if kind is None else 'default_hooks.checkpoint'
        raise UserError(
            f'--max-time {max_time}: {key} of this config is of a type of its own, or None, so that nothing could be '
            f'saved inside of an epoch. Set {key} to what the configs of this package have.'
        )
    return can


class _Stopping:
    """What both loops share; in front of a loop of mmengine among the bases."""

    runner: Runner
    dataloader: Any

    def run(self) -> Any:
        self.agreement = Agreement()
        val_loop: Any = self.runner.val_loop
        if val_loop is not None:
            spare_workers(val_loop.dataloader)
            self.runner.register_hook(_ValidationWatch(self.agreement), priority='LOWEST')
        try:
            return super().run()  # type: ignore[misc]
        except _LeftValidation as left:
            for hook in self.runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(self.runner)  # the model has the averages, and gets its own weights back
            self.leave(left.reason, 0)

    def pause(self, batches: int) -> None:
        """Leave behind an iteration if that is asked for; ``batches`` of the epoch are done."""
        reason = self.agreement.ask()
        if reason and _updated(self.runner.optim_wrapper):
            self.leave(reason, batches)

    def leave(self, reason: int, batches: int) -> None:
        """Save, and raise :class:`ToldToEnd`."""
        runner: Any = self.runner
        hook: Any = _checkpoint_hook(runner)  # there: otherwise nobody takes note of signals
        name = '--max-time' if reason == TIME_IS_UP else signal.Signals(reason).name
        note_place(runner, batches)
        saved = hook.save_here(runner)
        self.agreement.meet()  # a launcher ends all processes with the first that ends
        where = f'after iteration {runner.iter}'
        if batches:
            where += f', {batches} of {len(self.dataloader)} of epoch {runner.epoch + 1}'
        raise ToldToEnd(f'told to end by {name} {where}. --resume goes on from {saved}.')


class EpochLoop(_Stopping, EpochBasedTrainLoop):
    """mmengine's loop over epochs, which begins and ends inside of one, too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.order = ordered(self.dataloader)
        self.first = 0  # batches of this epoch that are past
        self.loads_all = self.order is None or remembers(self.dataloader.dataset)

    def run(self) -> Any:
        self.first = batches_to_skip(self.runner, len(self.dataloader))
        if self.first and self.loads_all:
            self.runner.logger.warning(
                f'Loading {self.first} batches of this epoch again: a transform remembers pictures of earlier batches.'
            )
        return super().run()

    def run_epoch(self) -> None:
        if self.order is not None:
            self.order.epoch, self.order.first = self.epoch, 0 if self.loads_all else self.first
        super().run_epoch()
        self.first = 0
        if self.epoch < self.max_epochs and not self.stop_training:
            self.pause(0)

    def run_iter(self, idx: int, data_batch: Any) -> None:
        place = idx if self.loads_all else self.first + idx
        if place < self.first:
            return
        super().run_iter(place, data_batch)
        if place + 1 < len(self.dataloader):  # what belongs to the end of an epoch comes next
            self.pause(place + 1)


class IterLoop(_Stopping, IterBasedTrainLoop):
    """mmengine's loop over iterations, which does not load again what a resumed run has behind it."""

    def __init__(self, runner: Runner, dataloader: Any, *args: Any, **kwargs: Any) -> None:
        with lazy_batches(self._batches):
            super().__init__(runner, dataloader, *args, **kwargs)

    def _batches(self, dataloader: Any) -> Any:
        """Batches without end; None for those of mmengine, which loads all of the past again."""
        if remembers(dataloader.dataset) or ordered(dataloader) is None:
            spare_workers(dataloader)
            return None
        return EndlessBatches(dataloader, lambda: self.iter)

    def run_iter(self, data_batch: Any) -> None:
        super().run_iter(data_batch)
        if self.iter < self.max_iters:
            self.pause(0)


class _LeftValidation(Exception):
    """A validation was left; its results do not count."""

    def __init__(self, reason: int) -> None:
        super().__init__(reason)
        self.reason = reason


class _ValidationWatch(Hook):
    """Leaves a validation; the resumed run repeats it."""

    def __init__(self, agreement: Agreement) -> None:
        self.agreement, self.fewest = agreement, 0

    def before_val_epoch(self, runner: Runner) -> None:
        self.fewest = self.agreement.fewest(len(runner.val_dataloader))

    def after_val_iter(self, runner: Runner, batch_idx: int, *_: Any, **__: Any) -> None:
        if batch_idx < self.fewest and (reason := self.agreement.ask()):  # beyond it, a process may be alone
            raise _LeftValidation(reason)


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)


def _updated(wrapper: Any) -> bool:
    """Whether the last iteration updated the weights, so that no gradients are held that would have to be saved."""
    wrappers = [wrapper] if isinstance(wrapper, OptimWrapper) and not hasattr(wrapper, 'values') else wrapper.values()
    return all(part.should_update() for part in wrappers)
