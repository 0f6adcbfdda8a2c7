"""``torch.load`` that builds only what an allow-list names, and the lists; before torch 2.6 by an unpickler of ours.

A pickle is a program. Its only ways out are the globals that it names, what it calls, and the state that it sets: here
each global is on the list, only those and what they return can be called, and only instances of listed classes get
state.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from _codecs import encode
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import load as _torch_load

from swinv2_mm.compat import VERSION


class _Ignored(dict):
    """An inert stand-in for an object that a training saved beside the weights, or for the function that makes it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass


# NumPy 2 moved these two functions; a file names the place that they had when it was written.
_NUMPY_MAKERS = {
    name: tuple(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core')) for name in ('_reconstruct', 'scalar')
}
_IGNORED = (
    'argparse.Namespace',
    'builtins.getattr',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.dtype',
    'numpy.ndarray',
    'pathlib.PosixPath',
    'pathlib._local.PosixPath',
    *(place for places in _NUMPY_MAKERS.values() for place in places),
)
INERT: list[Any] = [
    *((_Ignored, name) for name in _IGNORED),
    # Of all classes, torch lets a file put items only into OrderedDicts.
    *((OrderedDict, name) for name in ('yacs.config.CfgNode', 'mmengine.config.config.ConfigDict')),
]
"""For weights: configurations, logged numbers and paths of Microsoft's code, SimMIM, timm and mmengine, made inert.

None of these names is imported, and any other name is refused."""


def of_numpy(*kinds: str) -> list[Any]:
    """NumPy's arrays and scalars of some data types, in the form that a pickle names them."""
    makers = {'_reconstruct': np.empty(0).__reduce__()[0], 'scalar': np.float64().__reduce__()[0]}
    types = [type(np.dtype(kind)) for kind in kinds]
    return [
        np.ndarray,
        np.dtype,
        *types,
        *((makers[name], place) for name, places in _NUMPY_MAKERS.items() for place in places),
    ]


# What torch's own list has in later versions, and older lists lack.
_ALLOWED_LATER = {
    'collections.Counter': Counter,
    'builtins.set': set,
    'builtins.bytearray': bytearray,
    'builtins.complex': complex,
    '_codecs.encode': encode,
    'torch.device': torch.device,
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
}


def load(path: str | Path, allow: Sequence[Any], mmap: bool = False) -> Any:
    """Read a file of ``torch.save`` to the CPU.

    Args:
        path: A local file.
        allow: Globals that it may name besides torch's own, as for :func:`torch.serialization.safe_globals`.
        mmap: Map the tensors rather than copying them.

    Raises:
        pickle.UnpicklingError: It names another global; the message has ``GLOBAL`` before the name.
    """
    if VERSION >= (2, 6):
        with _only(allow):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    return _load_by_ours(str(path), unpickler_for(allow), 'cpu', mmap)


def protect(allow: Sequence[Any]) -> None:
    """Let every ``torch.load`` of this process read as :func:`load`, whatever its caller and the environment say."""
    for name in ('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'):
        os.environ.pop(name, None)
    if VERSION >= (2, 6):
        os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'
        return
    unpickler = unpickler_for(allow)

    def load_data(f: Any, map_location: Any = None, *_: Any, mmap: bool | None = None, **__: Any) -> Any:
        return _load_by_ours(f, unpickler, map_location, mmap)

    torch.load = load_data


def _load_by_ours(f: Any, unpickler: Any, map_location: Any, mmap: bool | None = None) -> Any:
    """``torch.load`` with :func:`unpickler_for`, which refuses what ``weights_only=True`` of later versions refuses.

    Before 2.6 that option takes no list, and torch takes no other unpickler beside it, so it has to be off. torch would
    give a TorchScript archive, which is a program, to another loader, whatever the unpickler.
    """
    if zipfile.is_zipfile(f):
        with zipfile.ZipFile(f) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise pickle.UnpicklingError('Unsupported GLOBAL torch.jit.ScriptModule')
    if hasattr(f, 'seek'):
        f.seek(0)
    return _torch_load(f, map_location, unpickler, weights_only=False, mmap=mmap)


@contextmanager
def _only(allow: Sequence[Any]) -> Iterator[None]:
    """Let a pickle name these globals only: with those of other code, one name could have two meanings."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allow))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def unpickler_for(allow: Sequence[Any]) -> Any:
    """What ``torch.load`` takes as ``pickle_module``: an unpickler for these globals and torch's own."""
    from torch._weights_only_unpickler import _get_allowed_globals

    allowed = _get_allowed_globals() | _ALLOWED_LATER
    for entry in allow:
        thing, name = entry if isinstance(entry, tuple) else (entry, f'{entry.__module__}.{entry.__qualname__}')
        allowed[name] = thing
    classes = [thing for thing in allowed.values() if isinstance(thing, type)]

    in_python: Any = pickle._Unpickler  # C's looks no operation up

    class Unpickler(in_python):
        def find_class(self, module: str, name: str) -> Any:
            if self.proto < 3:  # the names of Python 2
                module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            if f'{module}.{name}' not in allowed:
                raise pickle.UnpicklingError(f'Unsupported GLOBAL {module}.{name}')
            return allowed[f'{module}.{name}']

        def load_build(self) -> None:
            if type(self.stack[-2]) not in classes:
                raise pickle.UnpicklingError(f'state for an object of type {type(self.stack[-2]).__name__}')
            super().load_build()

        dispatch = {**in_python.dispatch, pickle.BUILD[0]: load_build}

    return SimpleNamespace(
        __name__=__name__, Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load()
    )
