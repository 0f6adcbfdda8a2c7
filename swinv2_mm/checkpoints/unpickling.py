"""``torch.load`` that builds only what an allow-list names, and the lists; other pickles by an unpickler of ours.

A pickle is a program. Its only ways out are the globals that it names, what it calls, and the state that it sets: here
each global is on the list, only those and what they return can be called, and only instances of listed classes get
state.
"""

from __future__ import annotations

import math
import os
import pickle
import re
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
from torch import Tensor
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


class _Recorded(_Ignored):
    """What a pickle says about an object of NumPy, as data: no code of NumPy reads it."""

    __slots__ = ('arguments', 'state')
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: object) -> _Recorded:
        recorded = super().__new__(cls)
        recorded.arguments, recorded.state = arguments, ()
        return recorded

    def __setstate__(self, state: object) -> None:
        self.state = state


class _DType(_Recorded):
    pass


class Array(_Recorded):
    """An array of NumPy in a pickle."""

    def _parts(self) -> tuple[Any, ...]:
        """Shape, data type, order in memory and bytes."""
        shape, dtype, fortran, raw = self.state[-4:]
        return shape, dtype, 'F' if fortran else 'C', raw

    def numbers(self) -> Tensor:
        """Its numbers as a tensor in this machine's byte order; a ValueError for objects, text or damaged bytes."""
        try:
            shape, dtype, order, raw = self._parts()
            name, (_, endian, *_) = str(dtype.arguments[0]), dtype.state
            if not re.fullmatch(r'f[248]|[iu][1248]|b1', name):
                raise ValueError(f'the data type {name!r}, no numbers that torch has')
            kind = np.dtype(endian.replace('|', '=') + name)
            raw = raw.encode('latin1') if isinstance(raw, str) else raw  # Python 2 has no bytes
            if len(raw) != math.prod(shape) * kind.itemsize:
                raise ValueError('fewer or more bytes than its shape says')
            array = np.ndarray(shape, kind, raw, order=order)
        except (TypeError, IndexError, AttributeError, UnicodeEncodeError) as error:
            raise ValueError('a description that NumPy does not write') from error
        signed = {'u2': 'i4', 'u4': 'i8', 'u8': 'i8'}.get(name, name)  # torch had no others before 2.3
        return torch.from_numpy(array.astype(f'={signed}', order='C'))


class _Buffer(Array):
    def _parts(self) -> tuple[Any, ...]:
        raw, dtype, shape, order = self.arguments
        return shape, dtype, order, raw


def _empty() -> bytes:
    """``bytes()``, the bytes of an empty array below protocol 3; the real one could fill the memory."""
    return b''


# NumPy 2 moved these functions; a file names the place that they had when it was written.
_NUMPY_MAKERS = {
    name: tuple(f'numpy.{core}.{module}.{name}' for core in ('core', '_core'))
    for module, name in (('multiarray', '_reconstruct'), ('multiarray', 'scalar'), ('numeric', '_frombuffer'))
}
_RECORDED = {'_reconstruct': Array, 'scalar': _Ignored, '_frombuffer': _Buffer}
_IGNORED = (
    'argparse.Namespace',
    'builtins.getattr',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.ndarray',
    'pathlib.PosixPath',
    'pathlib._local.PosixPath',
)
INERT: list[Any] = [
    *((_Ignored, name) for name in _IGNORED),
    (_DType, 'numpy.dtype'),
    (_empty, 'builtins.bytes'),
    *((_RECORDED[name], place) for name, places in _NUMPY_MAKERS.items() for place in places),
    # Of all classes, torch lets a file put items only into OrderedDicts.
    *((OrderedDict, name) for name in ('yacs.config.CfgNode', 'mmengine.config.config.ConfigDict')),
]
"""For weights: configurations, logged numbers and paths of Microsoft's code, SimMIM, timm and mmengine, made inert, and
NumPy's arrays as :class:`Array`.

None of these names is imported, and any other name is refused."""


def of_numpy(*kinds: str) -> list[Any]:
    """NumPy's arrays and scalars of some data types, in the form that a pickle names them."""
    makers = {'_reconstruct': np.empty(0).__reduce__()[0], 'scalar': np.float64().__reduce__()[0]}
    types = [type(np.dtype(kind)) for kind in kinds]
    return [
        np.ndarray,
        np.dtype,
        *types,
        *((makers[name], place) for name in makers for place in _NUMPY_MAKERS[name]),
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
        _refuse_program(path)
        with _only(allow):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    return _load_by_ours(str(path), unpickler_for(allow), 'cpu', mmap)


def load_plain(path: str | Path) -> Any:
    """Read a pickle that torch did not write, as detectron2's, with NumPy's arrays as :class:`Array`.

    Raises:
        pickle.UnpicklingError: It names anything beside :data:`INERT`; the message has ``GLOBAL`` before the name.
    """
    allowed = {name: thing for thing, name in INERT}
    allowed |= {'collections.OrderedDict': OrderedDict, 'builtins.set': set, '_codecs.encode': _encode}
    with open(path, 'rb') as file:
        return _unpickler(allowed).load(file, encoding='latin1')  # of Python 2's strings


def _encode(text: str, encoding: str) -> bytes:
    """``_codecs.encode`` as pickles below protocol 3 spell bytes with it; the real one imports a module by name."""
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'Unsupported GLOBAL _codecs.encode({encoding!r})')
    return text.encode(encoding)


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
    _refuse_program(f)
    if hasattr(f, 'seek'):
        f.seek(0)
    return _torch_load(f, map_location, unpickler, weights_only=False, mmap=mmap)


def _refuse_program(f: Any) -> None:
    """Refuse a TorchScript archive by the name of what it is."""
    if zipfile.is_zipfile(f):
        with zipfile.ZipFile(f) as archive:
            if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                raise pickle.UnpicklingError('Unsupported GLOBAL torch.jit.ScriptModule')


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
    return _unpickler(allowed)


def _unpickler(allowed: dict[str, Any]) -> Any:
    """A pickle module, as ``torch.load`` takes it, which builds what these names stand for and nothing else."""
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
