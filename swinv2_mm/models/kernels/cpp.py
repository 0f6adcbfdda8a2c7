"""Load and call the C++ of ``csrc/``, compiled for the widest vectors of this processor.

It is compiled when the package is installed, if there is a compiler: once per instruction set. Its interface is plain
C, so building it needs no torch, and it works with any torch. If it is missing, torch's operations compute the same.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from collections.abc import Iterable
from functools import cache, lru_cache

import torch
from torch import Tensor

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
    """The instruction sets of this processor that the C++ is written for, widest first; empty if there are none.

    torch names the widest, so that its ``ATEN_CPU_CAPABILITY`` holds here, too.
    """
    if platform.machine() in ('aarch64', 'arm64'):
        return ('neon',)
    widest = torch.backends.cpu.get_cpu_capability()
    return ('avx512', 'avx2') if widest.startswith('AVX512') else ('avx2',) if widest == 'AVX2' else ()


@cache
def compiled_for(instruction_set: str) -> ctypes.CDLL | None:
    """The functions compiled for one of :func:`instruction_sets`; None if they were not compiled."""
    found = importlib.util.find_spec(f'swinv2_mm._kernels_{instruction_set}')
    if found is None:
        return None
    try:
        loaded = ctypes.CDLL(found.origin)  # it uses the threads of torch's OpenMP, which is loaded already
    except OSError:
        return None
    for name, arguments in _ARGUMENTS.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    return loaded


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled functions that run fastest on this processor; None if there are none."""
    return next(filter(None, map(compiled_for, instruction_sets())), None)


def check(tensor: Tensor | None, dtype: torch.dtype, *shape: int) -> None:
    """Raise a TypeError unless a tensor is contiguous and as given, or None: the C++ would go beyond its end."""
    if tensor is not None and (
        tensor.dtype != dtype or tensor.shape != shape or not tensor.is_cpu or not tensor.is_contiguous()
    ):
        raise TypeError(
            f'the C++ expects a contiguous {shape} of {dtype} on the CPU, and was given {tuple(tensor.shape)} of '
            f'{tensor.dtype} on {tensor.device}'
        )


def run(function: str, dtype: torch.dtype, tensors: Iterable[Tensor | None], *numbers: float) -> None:
    """Call a function of :func:`library` for maps of a type; None becomes a null pointer."""
    addresses = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
    getattr(library(), function)(TYPES[dtype], *addresses, *numbers, torch.get_num_threads())
