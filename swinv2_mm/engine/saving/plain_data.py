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

LOG = 'log_buffers'
"""The key of the log in ``message_hub``. mmengine accepts only HistoryBuffers under its own key, ``log_scalars``."""

_PLAIN = (NoneType, bool, int, float, complex, str, bytearray, torch.Size, torch.device, torch.dtype)
# Functions that turn a subclass, such as np.float64 or an IntEnum, into its plain base.
_BASES = {int: int.__int__, float: float.__float__, complex: complex.__complex__, str: str.__str__, bytes: bytearray}
_NO_DATA = object()


def to_plain(value: Any, place: str = '', left_out: dict[str, str] | None = None) -> Any:
    """Turn a value into tensors, numbers, strings, None, lists, tuples and dicts, of types that torch reads by default.

    Arrays and sets become lists, paths become strings, subclasses become their base. A plain value is returned as the
    same object. A value that is no data is removed from its dict; in a list, None replaces it.

    Args:
        value: Anything.
        place: Its position, for ``left_out``.
        left_out: Receives the positions of values that are no data, as ``meta.objects[3]``, and their types.

    Returns:
        The plain value; None if it is no data.
    """
    plain = _convert(value, place, {} if left_out is None else left_out)
    return None if plain is _NO_DATA else plain


def _convert(value: Any, place: str, left_out: dict[str, str]) -> Any:
    if isinstance(value, Tensor) or type(value) in _PLAIN:
        return value
    if isinstance(value, np.ndarray | np.generic) and type(value.tolist()) is not type(value):
        return _convert(value.tolist(), place, left_out)
    for base, plain in _BASES.items():
        if isinstance(value, base):
            return plain(value)
    if isinstance(value, PathLike):
        return _convert(fspath(value), place, left_out)
    if isinstance(value, dict):
        return _convert_dict(value, place, left_out)
    if isinstance(value, list | tuple | set | frozenset | deque | range):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        items = [to_plain(item, f'{place}[{index}]', left_out) for index, item in enumerate(items)]
        plain = tuple(items) if isinstance(value, tuple) else items
        return value if type(plain) is type(value) and all(map(is_, plain, value)) else plain
    left_out[place] = type(value).__name__
    return _NO_DATA


def _convert_dict(value: dict, place: str, left_out: dict[str, str]) -> dict:
    items = {}
    for key, inner in value.items():
        inside = f'{place}.{key}' if place else str(key)
        pair = _convert(key, inside, left_out), _convert(inner, inside, left_out)
        if not any(part is _NO_DATA for part in pair):
            items[pair[0]] = pair[1]
    same = len(items) == len(value) and all(map(is_, items, value)) and all(map(is_, items.values(), value.values()))
    base = next(kind for kind in (OrderedDict, Counter, dict) if isinstance(value, kind))
    # A state_dict has the versions of its modules as an attribute.
    attributes = vars(value) if base is OrderedDict else {}
    plain_attributes = _convert_dict(attributes, place, left_out) if attributes else attributes
    if same and attributes is plain_attributes and type(value) is base:
        return value
    plain = base(items)
    if plain_attributes:
        vars(plain).update(plain_attributes)
    return plain


def make_plain(checkpoint: dict[str, Any]) -> dict[str, str]:
    """Make a checkpoint of mmengine's runners plain, in place; the containers in it are not edited.

    The log becomes dicts of tensors, under :data:`LOG` in ``message_hub``. Plain mmengine resumes from the other keys
    without a warning; its log begins anew.

    Returns:
        The positions and types of values that were left out, except for the functions of schedulers, which the config
        restores.
    """
    hub = checkpoint['message_hub']
    if LOG not in hub:
        log = {name: _to_tensors(buffer) for name, buffer in hub['log_scalars'].items()}
        checkpoint['message_hub'] = {**hub, 'log_scalars': {}, LOG: log}
    left_out: dict[str, str] = {}
    plain = to_plain(dict(checkpoint), '', left_out)
    checkpoint.clear()
    checkpoint.update(plain)
    hub = checkpoint['message_hub']
    hub['resumed_keys'] = {key: value for key, value in hub['resumed_keys'].items() if key in hub['runtime_info']}
    return {
        place: kind
        for place, kind in left_out.items()
        if not (place.startswith('param_schedulers') and kind in ('function', 'method'))
    }


def _to_tensors(buffer: HistoryBuffer) -> dict[str, Any]:
    values, counts = map(torch.tensor, buffer.data)
    return {'values': values, 'counts': counts, 'max_length': buffer.max_length}


def restore_log(checkpoint: dict[str, Any]) -> None:
    """Restore the log of a plain checkpoint in place, as mmengine's ``MessageHub`` expects it; leave others."""
    hub = checkpoint.get('message_hub')
    log = hub.pop(LOG, {}) if isinstance(hub, dict) else {}
    for name, saved in log.items():
        values, counts = (saved[key].numpy(force=True) for key in ('values', 'counts'))
        hub['log_scalars'][name] = HistoryBuffer(values, counts, saved['max_length'])
        hub['resumed_keys'][name] = True
