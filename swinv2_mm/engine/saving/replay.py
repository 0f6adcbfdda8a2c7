"""Replay: step schedules of mmengine, without training, to where an uninterrupted run would have them."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from swinv2_mm.engine.mmengine_internals import ScheduledGroups

# Their schedulers compute with the values of groups elementwise.
_FRAMEWORKS = ('mmengine', 'mmdet', 'mmseg', 'mmpretrain')


def replay(schedulers: Sequence[Any], groups: Sequence[dict], epochs: int, epoch_length: int, iterations: int) -> None:
    """Step freshly built schedulers, in the order of a run.

    Args:
        schedulers: Those of one optimizer, in the order of the config.
        groups: What they schedule: the optimizer's ``param_groups``, edited in place.
        epochs: Full epochs so far, of ``epoch_length`` iterations each.
        iterations: All iterations so far; those beyond the full epochs belong to a part of one.
    """
    kept = [(scheduler.optimizer, scheduler.verbose) for scheduler in schedulers]
    stacked = _stack(schedulers, groups)
    for scheduler in schedulers:
        scheduler.verbose = False
        if stacked is not None:
            scheduler.optimizer = ScheduledGroups([stacked])
            if hasattr(scheduler, 'base_values'):
                scheduler.base_values = [np.array(scheduler.base_values, float)]
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmengine's, about steps before those of the optimizer
        _step(schedulers, epochs, epoch_length, iterations)
    for scheduler, (optimizer, verbose) in zip(schedulers, kept, strict=True):
        scheduler.optimizer, scheduler.verbose = optimizer, verbose
        for name, value in vars(scheduler).items():
            if isinstance(value, list) and len(value) == 1 and isinstance(value[0], np.ndarray):
                setattr(scheduler, name, value[0].tolist())
    for index, group in enumerate(groups):
        group.update({name: _item(value, index) for name, value in (stacked or {}).items()})


def _step(schedulers: Sequence[Any], epochs: int, epoch_length: int, iterations: int) -> None:
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    for length, at_end in [*[(epoch_length, by_epoch)] * epochs, (iterations - epochs * epoch_length, [])]:
        for _ in range(length if by_iteration else 0):
            for scheduler in by_iteration:
                scheduler.step()
        for scheduler in at_end:
            scheduler.step()


def _stack(schedulers: Sequence[Any], groups: Sequence[dict]) -> dict[str, Any] | None:
    """One group of arrays for many of numbers, so that a step costs the same for any number of groups.

    Returns:
        What the schedulers read and write; None if they may compute other than elementwise.
    """
    if any(type(scheduler).__module__.split('.')[0] not in _FRAMEWORKS for scheduler in schedulers):
        return None
    names = scheduled_names(scheduler.param_name for scheduler in schedulers)
    names = {name for name in names if all(name in group for group in groups)}
    if not all(is_number(group[name]) for name in names for group in groups):
        return None
    return {name: _array([group[name] for group in groups]) for name in names}


def scheduled_names(names: Iterable[str]) -> set[str]:
    """The keys of a group that schedules of some parameters, such as ``'lr'``, read or write."""
    names = {*names}
    prefixed = {f'{prefix}{name}' for name in names for prefix in ('', 'initial_', 'max_', 'min_')}
    return prefixed | ({'betas'} if 'momentum' in names else set())


def is_number(value: Any) -> bool:
    """Whether a value is a number, or several, as betas are; True and False are none."""
    if isinstance(value, list | tuple):
        return all(map(is_number, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def _array(values: list) -> Any:
    if isinstance(values[0], list | tuple):
        return tuple(_array([*column]) for column in zip(*values, strict=True))
    return np.array(values, float)


def _item(value: Any, index: int) -> Any:
    return tuple(_item(part, index) for part in value) if isinstance(value, tuple) else float(value[index])
