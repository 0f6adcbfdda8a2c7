"""Checkpoints as plain data: ``torch.load`` reads them anywhere, without mmengine or NumPy."""

from collections import Counter, OrderedDict, deque
from operator import is_
from os import PathLike, fspath
from types import NoneType
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

# The key of the log in ``message_hub``; under its own, ``log_scalars``, mmengine accepts only HistoryBuffers.
LOG = 'log_buffers'

_PLAIN = (NoneType, bool, int, float, complex, str, bytearray, torch.Size, torch.device, torch.dtype)
# Functions that turn a subclass, such as np.float64 or an IntEnum, into its plain base.
_BASES = {int: int.__int__, float: float.__float__, complex: complex, str: str.__str__, bytes: bytearray}


def to_plain(value: Any, place: str = '', left_out: dict[str, str] | None = None) -> Any:
    """Turn a value into tensors, numbers, strings, None, lists, tuples and dicts, of types that torch reads by default.

    Arrays and sets become lists, paths strings, subclasses their base. A value that is no data is removed from its
    dict; elsewhere None replaces it. ``left_out`` receives its position, such as ``meta.objects[3]``, and its type.
    """
    left_out = {} if left_out is None else left_out
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray | np.generic) and type(value.tolist()) is not type(value):
        return to_plain(value.tolist(), place, left_out)
    for base, plain in _BASES.items():
        if isinstance(value, base):
            return plain(value)
    if isinstance(value, PathLike):
        return to_plain(fspath(value), place, left_out)
    if isinstance(value, dict):
        return _plain_dict(value, place, left_out)
    if isinstance(value, list | tuple | set | frozenset | deque | range):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        items = [to_plain(item, f'{place}[{index}]', left_out) for index, item in enumerate(items)]
        items = tuple(items) if isinstance(value, tuple) else items
        # The same object, as often as it occurs: mmengine compares the data sets of checkpoints as pickles.
        return value if type(items) is type(value) and all(map(is_, items, value)) else items
    left_out[place] = type(value).__name__
    return None


def _plain_dict(value: dict, place: str, left_out: dict[str, str]) -> dict:
    items = {}
    for key, inner in value.items():
        inside = f'{place}.{key}' if place else str(key)
        plain_key, plain_value = to_plain(key, inside, left_out), to_plain(inner, inside, left_out)
        if inside not in left_out:
            items[plain_key] = plain_value
    base = next(kind for kind in (OrderedDict, Counter, dict) if isinstance(value, kind))
    plain = base(items)
    if base is OrderedDict:  # a state_dict has the versions of its modules as an attribute
        vars(plain).update(_plain_dict(vars(value), place, left_out))
    return plain


def make_plain(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Make a checkpoint of mmengine's runners plain, in place; the containers in it are not edited.

    The log becomes dicts of tensors, under :data:`LOG` in ``message_hub``. Plain mmengine can resume; its log is empty.

    Returns:
        The positions and types of values that were left out; not the functions of schedulers, which the config has.
    """
    hub = checkpoint['message_hub']
    if LOG not in hub:
        log = {}
        for name, buffer in hub['log_scalars'].items():
            values, counts = map(torch.tensor, buffer.data)
            log[name] = {'values': values, 'counts': counts, 'max_length': buffer.max_length}
        checkpoint['message_hub'] = {**hub, 'log_scalars': {}, LOG: log}
    left_out: dict[str, str] = {}
    plain = to_plain(dict(checkpoint), '', left_out)
    checkpoint.clear()
    checkpoint.update(plain)
    hub = checkpoint['message_hub']
    hub['resumed_keys'] = {key: value for key, value in hub['resumed_keys'].items() if key in hub['runtime_info']}
    for place, kind in [*left_out.items()]:
        if place.startswith('param_schedulers') and kind in ('function', 'method'):
            del left_out[place]
    return left_out


def restore_log(checkpoint: dict[str, Any]) -> None:
    """Restore the log of a plain checkpoint in place, as mmengine's ``MessageHub`` expects it; leave others."""
    hub: Any = checkpoint.get('message_hub')
    log = hub.pop(LOG, {}) if isinstance(hub, dict) else {}
    for name, saved in log.items():
        values, counts = (saved[key].numpy(force=True) for key in ('values', 'counts'))
        hub['log_scalars'][name] = HistoryBuffer(values, counts, saved['max_length'])
        hub['resumed_keys'][name] = True
