"""Cosine attention on a CPU with AVX-512, by the C++ of ``csrc/window_attention.cpp``.

It is compiled when the package is installed, where there is a compiler, and is plain C to call: no torch is needed to
build it, and no other torch breaks it. Where it is missing, or does not take what it is given,
:mod:`~swinv2_mm.models.cosine_attention` computes the same with torch's operations.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from swinv2_mm.models.recording import is_ordinary, is_recorded
from swinv2_mm.models.window import WindowGroup

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HEAD_WIDTH = 32
# A thread keeps the bias of one head over pairs of slots, and its gradient: 8 MiB for a window of 32.
MAX_SLOTS = 1024


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they are missing or the processor has no AVX-512."""
    found = importlib.util.find_spec('swinv2_mm._window_attention')
    if found is None or not torch.backends.cpu.get_cpu_capability().startswith('AVX512'):
        return None
    try:
        loaded = ctypes.CDLL(found.origin)  # its threads are those of torch's OpenMP, which is loaded already
    except OSError:
        return None
    for function, tensors in ((loaded.swinv2_attention_forward, 4), (loaded.swinv2_attention_backward, 7)):
        function.argtypes = [
            ctypes.c_int, *[ctypes.c_void_p] * tensors, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_int,
            ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        function.restype = None
    return loaded


def takes(qkv: Tensor, scale: Tensor, table: Tensor) -> bool:
    """Whether :func:`forward` and :func:`backward` compute with these.

    Not where somebody watches torch's operations: a counter would miss these, and a fake tensor has no memory.
    """
    return (qkv.is_cpu and is_ordinary(qkv) and qkv.dtype in _TYPES and scale.dtype == table.dtype == torch.float32
            and qkv.shape[4] == HEAD_WIDTH and qkv.shape[1] <= MAX_SLOTS and not is_recorded()
            and library() is not None)


def forward(qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup]) -> Tensor:
    """See :func:`~swinv2_mm.models.cosine_attention.cosine_attention`."""
    qkv, scale, table = qkv.contiguous(), scale.contiguous(), table.contiguous()
    G, N, _, nH, d = qkv.shape
    out = qkv.new_empty(G, N, nH, d)
    library().swinv2_attention_forward(_TYPES[qkv.dtype], *_addresses(qkv, scale, table, out),
                                       *_windows(qkv, table, groups))
    return out


def backward(
    grad: Tensor, qkv: Tensor, scale: Tensor, table: Tensor, groups: Sequence[WindowGroup]
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``qkv``, ``scale`` and ``table`` from that of the result."""
    grad, qkv, scale, table = (tensor.contiguous() for tensor in (grad, qkv, scale, table))
    found = tuple(torch.empty_like(tensor) for tensor in (qkv, scale, table))
    library().swinv2_attention_backward(_TYPES[qkv.dtype], *_addresses(qkv, scale, table, grad, *found),
                                        *_windows(qkv, table, groups))
    return found


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _windows(qkv: Tensor, table: Tensor, groups: Sequence[WindowGroup]) -> tuple:
    """What the functions want to know of the windows, after the tensors."""
    stops = (ctypes.c_int64 * len(groups))(*(group.stop for group in groups))
    regions = (ctypes.c_void_p * len(groups))(
        *(None if group.regions is None else group.regions.data_ptr() for group in groups))
    Wh, Ww = ((side + 1) // 2 for side in table.shape[1:])
    return qkv.shape[0], qkv.shape[3], Wh, Ww, len(groups), stops, regions, torch.get_num_threads()
