"""Choose who computes: the C++, Triton, oneDNN, or torch's operations as the formula is written.

Only this file asks about the device, the processor, autocast, a compiler, a tracer or a dispatch mode. The rest of the
model does what it answers. (Below it, ``cache.py`` says whether something records the operations, since that decides
what may be kept, and ``gpu/usable.py`` what a GPU can compute.)
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, wraps
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from swinv2_mm.compat import autocast_dtype, has_global_hook, is_compiling, is_dynamo_compiling
from swinv2_mm.models.cache import is_recorded, is_symbolic, is_traced
from swinv2_mm.models.kernels import cpp
from swinv2_mm.models.kernels.gpu import triton_attention

Pair = tuple[int, int]
Function = TypeVar('Function', bound=Callable)
Layer = TypeVar('Layer', bound=nn.Module)

# The limits of the C++ attention. A thread keeps the bias of one head over pairs of slots, and its gradient: 8 MiB for
# a window of 32.
CPP_HEAD_WIDTH = 64
CPP_SLOTS = 1024


# --- layers: fused code only for what we built -----------------------------------------------------------------------

# The forward passes that fused code replaces. A library that patches a class for all its layers must take effect, too.
FORWARD: dict[type[nn.Module], Callable] = {
    kind: kind.forward for kind in (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Dropout, nn.ReLU, nn.Sequential)
}


def is_ordinary(tensor: Tensor) -> bool:
    """Whether our kernels can read the values of a tensor: no subclass, no fake and no functional tensor."""
    return type(tensor) in (Tensor, nn.Parameter) and not torch._is_functional_tensor(tensor)


def untouched(module: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Whether calling a module does exactly what a class of :data:`FORWARD` does.

    False for another class (an adapter, int8, a parametrization), for a module with hooks (pruning uses one), and for
    one with its own ``forward``.
    """
    return (
        type(module) is kind
        and kind.forward is FORWARD[kind]
        and 'forward' not in module.__dict__
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not has_global_hook()
    )


def untouched_linear(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """:func:`untouched` for a linear layer, and its weight is an ordinary tensor."""
    return untouched(layer, nn.Linear) and (is_compiling() or is_ordinary(layer.weight))


def linear(x: Tensor) -> str:
    """How to compute linear layers and MLPs of ``x``.

    Returns:
        ``'operation'``: as a custom operation, which a compiler calls as it is. ``'pieces'``: our own code for a CPU.
        ``'formula'``: as written, on other devices and where a tracer records.
    """
    if not x.is_cpu:
        return 'formula'
    if is_dynamo_compiling():
        return 'operation'
    return 'formula' if is_traced() or not is_ordinary(x) else 'pieces'


def may_recompute() -> bool:
    """Whether activation checkpointing makes sense: gradients are wanted, and no ``torch.jit.trace`` records."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


# --- precision: no type that the processor only emulates -------------------------------------------------------------


@lru_cache
def has_arithmetic(dtype: torch.dtype) -> bool:
    """Whether this CPU has arithmetic for a floating-point type, and torch uses it; if not, float32 is faster."""
    if dtype in (torch.float32, torch.float64):
        return True
    if not torch.backends.mkldnn.is_available():  # a torch without oneDNN computes half precision in loops
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported() and not _widens_bfloat16()
    return dtype == torch.float16 and torch.ops.mkldnn._is_mkldnn_fp16_supported()


def _widens_bfloat16() -> bool:
    """Whether oneDNN computes bfloat16 in float32, as it does on AVX-512 without AVX512_BF16: three times as slow."""
    asked = getattr(torch.cpu, '_is_avx512_bf16_supported', None)
    return asked is not None and platform.machine().lower() in ('x86_64', 'amd64') and not asked()


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products with ``x`` are fast.

    Float32 products of half-precision numbers are exact, and rounded once, as where there is arithmetic for the type.
    """
    return torch.float32 if x.is_cpu and not has_arithmetic(x.dtype) else x.dtype


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which linear layers compute on a CPU: autocast's, if it is on."""
    dtype = autocast_dtype('cpu')
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def linear_dtype(layer: nn.Module, x: Tensor) -> torch.dtype:
    """The type in which a linear layer of ours reads ``x`` on a GPU: autocast's, if it is on."""
    dtype = autocast_dtype('cuda') if x.is_cuda and untouched_linear(layer) else None
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype


def in_useful_type(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """``function(x)``, without autocast if this CPU has no arithmetic for its type: rounding would only cost time.

    A compiler keeps autocast: the custom operations that it calls know the processor.
    """
    in_vain = (
        not is_compiling()
        and x.is_cpu
        and x.is_floating_point()
        and x.dtype != torch.float64
        and (dtype := autocast_dtype('cpu')) is not None
        and not has_arithmetic(dtype)
    )
    if not in_vain:
        return function(x)
    with torch.autocast('cpu', enabled=False):
        return function(x.float())


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of ``x``."""
    return x.device.type in ('cpu', 'cuda') and autocast_dtype(x.device.type) is not None


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of ``x``; the meta device has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def in_given_types(function: Function) -> Function:
    """Let a function compute in the types of its arguments, even under autocast.

    Autocast stays on inside an ``autograd.Function`` and an operation. It would narrow again what was widened there,
    widen what need not be, and a backward pass under it would get gradients of other types than the forward pass had.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        x = next(arg for arg in args if isinstance(arg, Tensor))
        if not is_autocast(x):
            return function(*args, **kwargs)
        with without_autocast(x):
            return function(*args, **kwargs)

    return run  # type: ignore[return-value]  # wraps() forgets the signature


@lru_cache(maxsize=1)
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith('AVX512')


def is_by_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes the products with ``x``; it is the fastest library on AVX-512."""
    return x.dtype in (torch.float32, torch.bfloat16) and _has_onednn()


# --- C++ -------------------------------------------------------------------------------------------------------------


def _cpp_reads(x: Tensor) -> bool:
    # A dispatch mode (FLOP counter, fake tensors) could not see the call.
    return not is_recorded() and x.is_cpu and x.dtype in cpp.TYPES and is_ordinary(x)


def gelu_by_cpp(x: Tensor) -> bool:
    """Whether the C++ computes bias and GELU of ``x``."""
    return _cpp_reads(x) and cpp.library() is not None


def norm_by_cpp(norm: nn.LayerNorm, x: Tensor, branch: Tensor) -> bool:
    """Whether the C++ computes ``x + norm(branch)``, for a norm over the channels."""
    return (
        _cpp_reads(x)
        and _cpp_reads(branch)
        and cpp.library() is not None
        and x.dtype == branch.dtype
        and x.shape == branch.shape
        and x.numel() > 0
        and norm.normalized_shape == x.shape[-1:]
        and norm.weight is not None
        and norm.bias is not None
        and _cpp_reads(norm.weight)
    )


# --- attention -------------------------------------------------------------------------------------------------------


def attention(backend: str, x: Tensor, window: Pair, head_width: int, drops: bool) -> str:
    """How to compute the attention of a feature map ``x``, ``(B, Hp, Wp, C)``.

    Args:
        backend: ``attn_backend`` of the backbone.
        window: ``(Wh, Ww)``, in tokens.
        head_width: Channels of a head.
        drops: Whether probabilities are dropped.

    Returns:
        ``'triton'``: the fused kernels. ``'map'``: by the C++, which needs no copy of the map in windows.
        ``'windows'``: torch's operations on windows. ``'operation'``: one custom operation, for a compiler or exporter
        and maps of any size. ``'uncompiled'``: outside of the compiled graph, since that operation has no dropout.

    Raises:
        ValueError: The backend is ``'cpp'``, and the C++ cannot compute this.
    """
    if drops and is_dynamo_compiling():
        return 'uncompiled'
    if backend == 'triton' or (backend == 'auto' and x.is_cuda and triton_attention.is_faster(x, window, head_width)):
        return 'triton'
    if is_symbolic(*x.shape[:3]):
        return 'operation'
    return 'map' if not drops and attention_by_cpp(backend, x, head_width, window) else 'windows'


def attention_by_cpp(backend: str, x: Tensor, head_width: int, window: Pair, *logits: torch.dtype) -> bool:
    """Whether the C++ computes attention, see :func:`attention`; ``logits``: the types of scale and bias, if known."""
    # Where something records, nothing is computed: 'cpp' gets the formula there, as 'auto' does.
    if backend == 'sdpa' or is_recorded() or x.is_meta:
        return False
    reason = _why_not_cpp(x, head_width, window[0] * window[1], {*logits} - {torch.float32})
    if reason and backend == 'cpp':
        raise ValueError(f"attn_backend='cpp' cannot be used: {reason}. Choose attn_backend='auto'.")
    return not reason


def _why_not_cpp(x: Tensor, head_width: int, slots: int, other_logits: set[torch.dtype]) -> str:
    """Why the C++ cannot compute attention; empty if it can."""
    if not x.is_cpu:
        return f'the C++ runs on a CPU, and the features are on {x.device.type}'
    if x.dtype not in cpp.TYPES:
        return f'there is no C++ for {x.dtype}'
    if other_logits:
        return f'its logits are {other_logits.pop()}'
    if not is_ordinary(x):
        return f'the features are a {type(x).__name__}, whose values the C++ cannot read'
    if head_width > CPP_HEAD_WIDTH:
        return f'its heads have {head_width} channels, the C++ takes {CPP_HEAD_WIDTH}'
    if slots > CPP_SLOTS:
        return f'the window has {slots} tokens, the C++ takes {CPP_SLOTS}'
    if cpp.library() is None:
        return 'the C++ was not compiled for this processor; `python -m swinv2_mm.doctor` says why'
    return ''


def compares_values(x: Tensor) -> bool:
    """Whether comparing the values of tensors is cheap; on a GPU the comparison waits for all that was launched."""
    return x.is_cpu


def logits_in_cache(x: Tensor) -> bool:
    """Whether a CPU computes: it is fast on logits that fit its cache, where torch's fused kernel is slower."""
    return x.is_cpu


def attention_as_written(qkv: Tensor, drops: bool) -> bool:
    """Whether to compute attention in operations that a tracer can record and autograd can differentiate."""
    return drops or is_traced() or not is_ordinary(qkv)
