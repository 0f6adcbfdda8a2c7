"""A resumed run follows the schedule of its config, also where the checkpoint was trained with another one."""

import ast
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from textwrap import shorten
from typing import Any

import numpy as np
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner

from swinv2_mm.engine.mmengine_internals import PLATEAU_PROGRESS, SCHEDULER_PROGRESS, loaded_from
from swinv2_mm.engine.saving.place import place_of, skipped
from swinv2_mm.engine.saving.plain_data import to_plain
from swinv2_mm.engine.saving.replay import is_number, replay, scheduled_names
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS

# Faster ways to compute, which this machine or its torch may not have; those of the checkpoint give the same bits.
_HOW = ('fused', 'foreach')
# Attributes of schedulers that follow from their arguments.
_DERIVED = ('total_iters', 'cumulative_periods', '_schedule_phases', 'rule_worse')


@HOOKS.register_module()
class ChangedScheduleHook(Hook):
    """Make the schedules of a resumed run those of its config.

    mmengine loads the state of the checkpoint's schedules over them, with their ends, milestones and learning rates. If
    the config has changed, the checkpoint is edited before it is loaded: schedules and groups get the values that an
    uninterrupted run of this config has at this epoch and iteration. An unchanged schedule is left as it was saved.
    """

    # Before hooks that read the checkpoint.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        wrapper: Any = runner.optim_wrapper
        if not runner.cfg.get('resume') or 'optimizer' not in checkpoint or not isinstance(wrapper, OptimWrapper):
            return
        schedulers: Any = runner.param_schedulers or []
        saved = checkpoint.get('param_schedulers') or []
        path = loaded_from(runner)
        if isinstance(wrapper, OptimWrapperDict):
            if _nested_settings(saved) != _nested_settings(schedulers):
                runner.logger.warning(
                    f'{path} was trained with other schedules than those of this config. With several optimizers, '
                    'those of the checkpoint go on.'
                )
            return
        saved_groups = _saved_groups(wrapper, checkpoint['optimizer'], path)
        for group, saved_group in zip(wrapper.param_groups, saved_groups, strict=False):
            saved_group.update({name: None for name in _HOW if saved_group.get(name) and not group.get(name)})
        changes, keep = _changes(runner, checkpoint, saved_groups)
        if not changes:
            return
        replay(schedulers, wrapper.param_groups, *_steps_done(runner, checkpoint))
        told = _keep_plateaus(schedulers, wrapper.param_groups, saved, saved_groups)
        states = [scheduler.state_dict() for scheduler in schedulers]
        pairs = [*zip(wrapper.param_groups, saved_groups, strict=False)]
        taken = {name for group, _ in pairs for name in _numbers(group)} - keep
        if to_plain(states) == to_plain(saved) and not _changed_values(pairs, taken):
            return
        old, new = saved_groups[0].get('lr'), wrapper.param_groups[0].get('lr')
        checkpoint['param_schedulers'] = states
        for group, saved_group in pairs:
            saved_group.update({name: group[name] for name in taken.intersection(group)})
        runner.logger.warning(
            f'{path} was trained with another schedule: {shorten("; ".join(changes), 300, placeholder=" …")}. From '
            'here on, the run has that of its config, as if it had begun with it. The learning rate goes on at '
            f'{new:.4g}{"" if new == old else f", and not at {old:.4g}"}.{told}'
        )


def _changes(runner: Runner, checkpoint: dict, saved_groups: list[dict]) -> tuple[list[str], set[str]]:
    """Say what is scheduled other than in the checkpoint, and name the values of groups that the checkpoint keeps."""
    schedulers, saved = runner.param_schedulers or [], checkpoint.get('param_schedulers') or []
    changes = _changed_schedules(saved, schedulers)
    trained, length = _epoch_lengths(runner, checkpoint)
    if trained != length and any(not scheduler.by_epoch for scheduler in schedulers):
        changes.append(f'{trained} iterations per epoch, now {length}')
    pairs = [*zip(runner.optim_wrapper.param_groups, saved_groups, strict=False)]
    keep = _unscheduled(pairs, saved, schedulers)
    values = _changed_values(pairs, keep)
    if values and not _same_optimizer(runner, checkpoint):
        return changes + values, set()
    return changes, keep


def _settings(scheduler: Any) -> dict[str, Any]:
    """What a scheduler, or its state in a checkpoint, was built with."""
    state = scheduler if isinstance(scheduler, dict) else scheduler.state_dict()
    changing = {*SCHEDULER_PROGRESS, *PLATEAU_PROGRESS, 'verbose'}
    return to_plain({name: value for name, value in state.items() if name not in changing})


def _nested_settings(schedulers: Any) -> Any:
    if isinstance(schedulers, list):
        return [_settings(scheduler) for scheduler in schedulers]
    return {name: _nested_settings(inner) for name, inner in schedulers.items()}


def _changed_schedules(saved: Sequence[dict], schedulers: Sequence[Any]) -> list[str]:
    """Say how schedules differ from those that were saved."""
    changes = []
    for index, (state, scheduler) in enumerate(zip_longest(saved, schedulers)):
        key = f'param_scheduler.{index}'
        if state is None or scheduler is None:
            changes.append(f'{key} is {"new" if state is None else "gone"}')
            continue
        old, new = _settings(state), _settings(scheduler)
        if old.keys() != new.keys():
            changes.append(f'{key} is of another type')
            continue
        names = [name for name in new if old[name] != new[name]]
        shown = [name for name in names if name not in _DERIVED] or names
        changes += [
            f'{key}.{name}={_shown(old[name])}, now {_shown(new[name])}' for name in shown if name != 'base_values'
        ]
        if 'base_values' in names:
            pair = next(
                pair for pair in zip(old['base_values'], new['base_values'], strict=False) if pair[0] != pair[1]
            )
            changes.append(f'{new["param_name"]}={pair[0]:g}, now {pair[1]:g}')
    return [*dict.fromkeys(changes)]


def _shown(value: Any) -> Any:
    """Milestones, which mmengine counts, as a config has them."""
    return [*value.elements()] if isinstance(value, Counter) else value


def _saved_groups(wrapper: OptimWrapper, saved: dict, path: str) -> list[dict]:
    """The groups of a checkpoint's optimizer, in the order of ``wrapper.param_groups``.

    Raises:
        UserError: The config divides the parameters into other groups, or has another optimizer.
    """
    groups: list[dict] = saved['param_groups']
    counts = [[len(group['params']) for group in side] for side in (groups, wrapper.optimizer.param_groups)]
    missing = [name for name in _numbers(wrapper.defaults) if name not in groups[0]]
    if counts[0] != counts[1] or missing:
        sizes = [f'{sum(count)} parameters in {len(count)} groups' for count in counts]
        what = f'has no {missing[0]}' if missing else f'has {sizes[0]}, that of this config {sizes[1]}'
        raise UserError(
            f'--resume: the optimizer of {path} {what}. Set optim_wrapper back to what it was trained with, or start a '
            f'new run from its weights: pass --cfg-options load_from={path} in the place of --resume.'
        )
    base = saved.get('base_param_settings')
    return groups if base is None or wrapper.base_param_settings is None else [*groups, base]


def _epoch_lengths(runner: Runner, checkpoint: dict) -> tuple[int, int]:
    """Iterations per epoch, in the checkpoint and now; 0 if the run does not count epochs."""
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        return 0, 0
    length = len(runner.train_dataloader)
    info = checkpoint['message_hub'].get('runtime_info') or {}
    trained = info['max_iters'] // info['max_epochs'] if info.get('max_iters') and info.get('max_epochs') else length
    return trained, length


def _steps_done(runner: Runner, checkpoint: dict) -> tuple[int, int, int]:
    """Epochs, iterations per epoch, and all iterations that an uninterrupted run of this config has behind it."""
    meta = checkpoint['meta']
    trained, length = _epoch_lengths(runner, checkpoint)
    if not length:
        return 0, 0, meta['iter']
    as_here = trained == length and meta['iter'] // length == meta['epoch']
    place = place_of(checkpoint)
    counted = meta['epoch'] * length + (skipped(place, length) if place else 0)
    return meta['epoch'], length, meta['iter'] if as_here else counted


def _numbers(group: dict) -> list[str]:
    return [name for name, value in group.items() if name != 'params' and is_number(value)]


def _unscheduled(pairs: Sequence[tuple[dict, dict]], saved: Sequence[dict], schedulers: Sequence[Any]) -> set[str]:
    """The names of values in groups that no schedule edits, now or in the checkpoint."""
    names = {state['param_name'] for state in saved} | {scheduler.param_name for scheduler in schedulers}
    return {name for group, _ in pairs for name in _numbers(group)} - scheduled_names(names)


def _changed_values(pairs: Sequence[tuple[dict, dict]], names: set[str]) -> list[str]:
    """Say which values of groups differ from those that were saved."""
    changes: dict[str, str] = {}
    for group, old in pairs:
        for name in names.intersection(group):
            if name not in old or not np.array_equal(group[name], old[name]):
                changes.setdefault(name, f'{name}={old.get(name)}, now {group[name]}')
    return [*changes.values()]


def _same_optimizer(runner: Runner, checkpoint: dict) -> bool:
    """Whether a checkpoint was trained with the config's ``optim_wrapper``: then a hook has edited its groups."""
    try:
        old, new = map(_optimizer, (checkpoint['meta'].get('cfg') or '', runner.cfg.pretty_text))
    except SyntaxError:
        return False
    return old == new


def _optimizer(text: str) -> list[str]:
    """The ``optim_wrapper`` in the text of a config, which is not run."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return [ast.dump(node.value) for node in nodes if ast.dump(node.targets[0]).startswith("Name(id='optim_wrapper'")]


def _keep_plateaus(
    schedulers: Sequence[Any], groups: Sequence[dict], saved: Sequence[dict], saved_groups: Sequence[dict]
) -> str:
    """Keep the state of schedules that depend on metrics, and the values that they have reduced; return a sentence."""
    told = ''
    for scheduler in schedulers:
        same = ('param_name', 'monitor', 'rule')
        state = next((s for s in saved if 'num_bad_epochs' in s and _alike(s, scheduler, same)), None)
        if state is None or not getattr(scheduler, 'need_val_args', False):
            continue
        scheduler.__dict__.update({name: state[name] for name in PLATEAU_PROGRESS})
        name = scheduler.param_name
        for group, old in zip(groups, saved_groups, strict=False):
            ratio = group[f'initial_{name}'] / old[f'initial_{name}'] if old.get(f'initial_{name}') else 1.0
            group[name] = old[name] * ratio
        told = f' What {type(scheduler).__name__} reduced cannot be replayed, and is kept.'
    return told


def _alike(state: dict, scheduler: Any, names: Sequence[str]) -> bool:
    return all(state.get(name) == getattr(scheduler, name, None) for name in names)
