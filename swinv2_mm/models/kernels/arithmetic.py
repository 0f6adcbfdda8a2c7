"""Which data types this processor computes in; the others it only emulates, many times slower than float32."""

import platform
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

import torch
from torch import Tensor

Function = TypeVar('Function', bound=Callable)


@lru_cache
def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether this CPU has arithmetic for a floating-point type, as far as torch uses it."""
    if dtype in (torch.float32, torch.float64):
        return True
    if not torch.backends.mkldnn.is_available():  # a torch built without oneDNN computes in half precision by loops
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not _widens_bfloat16()
    if dtype == torch.float16:
        return torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return False


def _widens_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 by float32 arithmetic, as from AVX-512 on it does without AVX512_BF16.

    Then products take three times as long as in float32.
    """
    asked = getattr(torch.cpu, '_is_avx512_bf16_supported', None)
    return asked is not None and platform.machine().lower() in ('x86_64', 'amd64') and not asked()


def autocasts_in_vain(x: Tensor) -> bool:
    """Whether autocast on this CPU would have what is made of ``x`` computed in a type that there is no arithmetic for.

    Rounding would then only cost time. A compiler is not asked: it has operations of ours that know.
    """
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and x.is_floating_point()
        and x.dtype != torch.float64
        and torch.is_autocast_enabled('cpu')
        and not has_arithmetic(torch.get_autocast_dtype('cpu'))
    )


def in_given_types(function: Function) -> Function:
    """Let a function compute in the types that it is given, also inside of autocast on a CPU.

    Autocast stays on inside of an ``autograd.Function`` and of an operation: it would turn what was widened there back,
    and a backward pass inside of it would get gradients of other types than the forward pass had.
    """

    @wraps(function)
    def run(*args, **kwargs):
        if not torch.is_autocast_enabled('cpu'):
            return function(*args, **kwargs)
        with torch.autocast('cpu', enabled=False):
            return function(*args, **kwargs)

    return run
