"""Cosine attention on a CPU by the C++ of ``csrc/window_attention.cpp``, in the widest vectors that the processor has.

It is compiled when the package is installed, where there is a compiler: once for each instruction set that the compiler
knows. It is plain C to call: no torch is needed to build it, and no other torch breaks it. Where it is missing, or does
not take what it is given, :mod:`~swinv2_mm.models.cosine_attention` computes the same with torch's operations.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from functools import cache, lru_cache

import torch
from torch import Tensor

from swinv2_mm.models.recording import is_ordinary, is_recorded
from swinv2_mm.models.window import shift_of

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_HEAD_WIDTH = 64
# A thread keeps the bias of one head over pairs of slots, and its gradient: 8 MiB for a window of 32.
MAX_SLOTS = 1024


def instruction_sets() -> tuple[str, ...]:
    """Those of this processor that the C++ is compiled for, widest first; none of them is an empty tuple.

    torch is asked, so that its ``ATEN_CPU_CAPABILITY`` holds here, too.
    """
    if platform.machine() in ('aarch64', 'arm64'):
        return ('neon',)
    widest = torch.backends.cpu.get_cpu_capability()
    return ('avx512', 'avx2') if widest.startswith('AVX512') else ('avx2',) if widest == 'AVX2' else ()


@cache
def compiled_for(instruction_set: str) -> ctypes.CDLL | None:
    """The functions compiled for one of :func:`instruction_sets`; None where they were not."""
    found = importlib.util.find_spec(f'swinv2_mm._window_attention_{instruction_set}')
    if found is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)  # its threads are those of torch's OpenMP, which is loaded already
    except OSError:
        return None
    for function, tensors in ((loaded.swinv2_attention_forward, 4), (loaded.swinv2_attention_backward, 7)):
        function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * tensors, *[ctypes.c_int64] * 4, *[ctypes.c_int] * 6]
        function.restype = None
    return loaded


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions that this processor runs fastest; None where there are none."""
    return next(filter(None, map(compiled_for, instruction_sets())), None)


def may_take(x: Tensor, head_width: int, slots: int) -> bool:
    """Whether :func:`takes` would be true of what a layer makes of ``x``, as far as that can be told before."""
    return (x.is_cpu and x.dtype in _TYPES and head_width <= MAX_HEAD_WIDTH and slots <= MAX_SLOTS and is_ordinary(x)
            and not is_recorded() and library() is not None)


def takes(qkv: Tensor, scale: Tensor, table: Tensor) -> bool:
    """Whether :func:`forward` and :func:`backward` compute with these.

    False under a dispatch mode (FLOP counter, fake tensors), which could not see the C++ call.
    """
    slots = (table.shape[1] + 1) * (table.shape[2] + 1) // 4
    return may_take(qkv, qkv.shape[5], slots) and scale.dtype == table.dtype == torch.float32


def forward(qkv: Tensor, scale: Tensor, table: Tensor, shifted: bool) -> Tensor:
    """See :func:`~swinv2_mm.models.map_attention.attention_on_map`; the window is that of the table."""
    qkv, scale, table = qkv.contiguous(), scale.contiguous(), table.contiguous()
    out = qkv.new_empty(*qkv.shape[:3], *qkv.shape[4:])
    library().swinv2_attention_forward(_TYPES[qkv.dtype], *_addresses(qkv, scale, table, out),
                                       *_sizes(qkv, table, shifted))
    return out


def backward(
    grad: Tensor, qkv: Tensor, scale: Tensor, table: Tensor, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of ``qkv``, ``scale`` and ``table`` from that of the result."""
    grad, qkv, scale, table = (tensor.contiguous() for tensor in (grad, qkv, scale, table))
    found = tuple(torch.empty_like(tensor) for tensor in (qkv, scale, table))
    library().swinv2_attention_backward(_TYPES[qkv.dtype], *_addresses(qkv, scale, table, grad, *found),
                                        *_sizes(qkv, table, shifted))
    return found


def _addresses(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _sizes(qkv: Tensor, table: Tensor, shifted: bool) -> tuple[int, ...]:
    """What the functions want to know after the tensors."""
    B, H, W, _, nH, d = qkv.shape
    window = (table.shape[1] + 1) // 2, (table.shape[2] + 1) // 2
    return B, H, W, nH, d, *window, *shift_of((H, W), window, shifted), torch.get_num_threads()
