"""Read weights as data, write them whole or not at all."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from swinv2_mm.checkpoints.convert import ConversionError

_CONTAINERS = ('model', 'state_dict')


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Read the state_dict of a ``.pth``, ``.bin`` or ``.safetensors`` file; nothing in it is executed.

    Raises:
        ConversionError: The file is missing, damaged, not a checkpoint, or would have to run code to load.
    """
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f'{path} does not exist; give the path of a checkpoint.')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file
            content = load_file(path)
        else:
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConversionError(f'{path} is no plain checkpoint: it holds objects other than tensors, which would have '
                              f'to run code to load, or is not a checkpoint at all ({str(error).splitlines()[0]}). Ask '
                              'for a file with the state_dict alone.') from None
    except Exception as error:
        reason = (str(error).splitlines() or [''])[0]
        raise ConversionError(f'{path} cannot be read as a checkpoint; it may be damaged, or its download incomplete '
                              f'({type(error).__name__}: {reason}).') from None
    for name in _CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)} \
        if isinstance(content, Mapping) else {}
    if not weights:
        raise ConversionError(f'{path} holds no tensors by name; give a file with a state_dict.')
    return weights


def write_weights(weights: Mapping[str, Tensor], path: str | os.PathLike, meta: Mapping[str, object]) -> None:
    """Write ``dict(state_dict=weights, meta=meta)`` as ``path``, which appears only when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    os.close(handle)
    try:
        torch.save(dict(state_dict=dict(weights), meta=dict(meta)), partial)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
