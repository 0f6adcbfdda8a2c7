"""The C++ of ``csrc/``, in the widest vectors that the processor has.

It is compiled when the package is installed, where there is a compiler: once for each instruction set that the compiler
knows. It is plain C to call: no torch is needed to build it, and no other torch breaks it. Where it is missing, torch's
operations compute the same.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from functools import cache, lru_cache

import torch
from torch import Tensor

from swinv2_mm.models.recording import is_ordinary, is_recorded

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_TENSOR, _SIZE, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_ARGUMENTS = {
    'swinv2_attention_forward': [_INT, *[_TENSOR] * 5, *[_SIZE] * 5, *[_INT] * 6],
    'swinv2_attention_backward': [_INT, *[_TENSOR] * 9, *[_SIZE] * 4, *[_INT] * 6],
    'swinv2_gelu': [_INT, *[_TENSOR] * 3, *[_SIZE] * 2, _INT],
    'swinv2_gelu_backward': [_INT, *[_TENSOR] * 4, *[_SIZE] * 2, _INT],
    'swinv2_residual_norm': [_INT, *[_TENSOR] * 8, *[_SIZE] * 3, ctypes.c_float, _INT],
    'swinv2_residual_norm_backward': [_INT, *[_TENSOR] * 9, *[_SIZE] * 3, _INT],
}


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
    found = importlib.util.find_spec(f'swinv2_mm._kernels_{instruction_set}')
    if found is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)  # its threads are those of torch's OpenMP, which is loaded already
    except OSError:
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions that this processor runs fastest; None where there are none."""
    return next(filter(None, map(compiled_for, instruction_sets())), None)


def may_take(x: Tensor) -> bool:
    """Whether the functions compute with a tensor, if there are any.

    False under a dispatch mode (FLOP counter, fake tensors), which could not see the call.
    """
    return not is_recorded() and x.is_cpu and x.dtype in TYPES and is_ordinary(x)


def check(tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> None:
    """Of what the C++ reads or writes as so many numbers of a type: it would go beyond the end of others.

    Raises:
        TypeError: Of another type or shape, on another device, or not contiguous. None is nothing to check.
    """
    if tensor is not None and (
        tensor.dtype != dtype or tensor.shape != shape or not tensor.is_cpu or not tensor.is_contiguous()
    ):
        raise TypeError(
            f'{tuple(tensor.shape)} of {tensor.dtype} on {tensor.device} where {shape} of {dtype} was to '
            'be, contiguous, on the CPU'
        )


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Of the first numbers, which the functions take; null for what is not there."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
