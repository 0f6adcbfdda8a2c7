"""Check the numbers of a config that nothing else checks before a run has begun."""

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

from mmengine.config import Config

from swinv2_mm.engine.config.parts import each
from swinv2_mm.errors import UserError

# The least value of each number that has such a name, and its type.
_LEAST: dict[str, tuple[int, Any]] = dict.fromkeys(('num_workers', 'val_begin', 'seed', 'milestones'), (0, int))
_LEAST |= dict.fromkeys(('batch_size', 'prefetch_factor', 'max_epochs', 'max_iters', 'val_interval'), (1, int))
_LEAST |= dict.fromkeys(('accumulative_counts', 'base_batch_size', 'interval', 'max_keep_ckpts'), (1, int))
_LEAST |= dict.fromkeys(('lr', 'max_norm', 'gamma'), (0, Real))
_PARTS = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'train_cfg', 'optim_wrapper', 'auto_scale_lr')
_OPTIONAL = ('prefetch_factor', 'seed', 'lr')
_NEVER = {'interval': 'never', 'max_keep_ckpts': 'all'}


def check_numbers(cfg: Config, context: object = None) -> None:
    """Check the type and the range of numbers such as ``batch_size``."""
    for key, name, value in _numbers(cfg):
        least, kind = _LEAST[name]
        if value == -1 and name in _NEVER:
            continue
        unbounded = name == 'max_norm' and value == math.inf  # the norm is logged, and nothing clipped
        if isinstance(value, bool) or not isinstance(value, kind) or not (least <= value < math.inf or unbounded):
            number = 'a whole number' if kind is int else 'a number'
            never = f', or -1 for {_NEVER[name]}' if name in _NEVER else ''
            raise UserError(f'{key}={value!r} must be {number}, at least {least}{never}.')


def _numbers(cfg: Config) -> Iterator[tuple[str, str, Any]]:
    """The key, its last part and the value of each number in ``_LEAST``."""
    parts = [(key, cfg.get(key)) for key in (*_PARTS, 'randomness')]
    for group in ('optim_wrapper', 'default_hooks'):
        parts += [(f'{group}.{name}', part) for name, part in (cfg.get(group) or {}).items()]
    parts += each(cfg.get('param_scheduler'), 'param_scheduler')
    for key, part in parts:
        for name, value in part.items() if isinstance(part, dict) else ():
            if name in _LEAST and (value is not None or name not in _OPTIONAL):
                for number in value if isinstance(value, list | tuple) else [value]:
                    yield f'{key}.{name}', name, number
