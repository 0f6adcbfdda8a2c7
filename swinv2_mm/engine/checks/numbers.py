"""Check the numbers of a config that nothing else checks before a run has begun."""

import math
from collections.abc import Iterator
from numbers import Real
from typing import Any

from mmengine.config import Config

from swinv2_mm.errors import UserError

# The least value of each number that has such a name, and its type.
_LEAST = {
    'batch_size': (1, int),
    'num_workers': (0, int),
    'prefetch_factor': (1, int),
    'max_epochs': (1, int),
    'max_iters': (1, int),
    'val_interval': (1, int),
    'val_begin': (0, int),
    'accumulative_counts': (1, int),
    'base_batch_size': (1, int),
    'interval': (1, int),
    'max_keep_ckpts': (1, int),
    'seed': (0, int),
    'lr': (0, Real),
    'max_norm': (0, Real),
    'gamma': (0, Real),
    'milestones': (0, int),
}
_OPTIONAL = ('prefetch_factor', 'seed', 'lr')
_NEVER = {'interval': 'never', 'max_keep_ckpts': 'all'}


def check_numbers(cfg: Config, context: object = None) -> None:
    """Check the type and the range of numbers such as ``batch_size``."""
    for key, name, value in _numbers(cfg):
        least, kind = _LEAST[name]
        if (value is None and name in _OPTIONAL) or (value == -1 and name in _NEVER):
            continue
        unbounded = name == 'max_norm' and value == math.inf  # the norm is logged, and nothing clipped
        if isinstance(value, bool) or not isinstance(value, kind) or not (least <= value < math.inf or unbounded):
            number = 'a whole number' if kind is int else 'a number'
            never = f', or -1 for {_NEVER[name]}' if name in _NEVER else ''
            raise UserError(f'{key}={value!r} must be {number}, at least {least}{never}.')


def _numbers(cfg: Config) -> Iterator[tuple[str, str, Any]]:
    """The key, its last part and the value of each number in ``_LEAST``."""
    parts = [
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'train_cfg',
        'auto_scale_lr',
        'randomness',
        'optim_wrapper',
        'optim_wrapper.optimizer',
        'optim_wrapper.clip_grad',
    ]
    for group in ('default_hooks', 'param_scheduler'):
        node = cfg.get(group)
        names = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        parts += [group, *(f'{group}.{name}' for name in names)]
    for part in parts:
        node = cfg
        for name in part.split('.'):
            node = node[int(name)] if isinstance(node, list) else node.get(name) if hasattr(node, 'get') else None
        for name, value in node.items() if isinstance(node, dict) else ():
            if name in _LEAST:
                for number in value if isinstance(value, list | tuple) else [value]:
                    yield f'{part}.{name}', name, number
