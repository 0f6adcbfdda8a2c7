"""What older versions of torch lack, down to 2.1: each name here goes when its version is no longer supported."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
from torch.nn.modules import module as _module

VERSION = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])

COMPILES = VERSION >= (2, 6)
"""Whether compilers see our operations; before, ``torch.compile`` leaves the backbone as it is."""

FUSED_ON_CPUS = VERSION >= (2, 4)
"""Whether ``fused=True`` of an optimizer, a matter of speed, is more than an error on a CPU."""


def is_compiling() -> bool:
    """``torch.compiler.is_compiling`` (2.3)."""
    return COMPILES and torch.compiler.is_compiling()


def is_dynamo_compiling() -> bool:
    """``torch.compiler.is_dynamo_compiling`` (2.3)."""
    return COMPILES and torch.compiler.is_dynamo_compiling()


def autocast_dtype(device: str) -> torch.dtype | None:
    """The type that autocast computes in on a device type, None where it is off (2.4 asks by device)."""
    if VERSION >= (2, 4):
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if device == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def custom_op(name: str, schema: str) -> Callable[[Callable], Any]:
    """``torch.library.custom_op`` without mutated arguments (2.4; it reads the annotations of a function from 2.6)."""
    if VERSION >= (2, 4):
        return torch.library.custom_op(name, mutates_args=(), schema=schema)
    return _Operation


class _Operation:
    """A function with the methods of a custom operation, as an autograd function: no compiler sees it."""

    def __init__(self, function: Callable) -> None:
        self.function, self.apply = function, None

    def __call__(self, *args: Any) -> Any:
        return (self.apply or self.function)(*args)

    def register_fake(self, function: Callable) -> Callable:
        return function

    def register_autograd(self, backward: Callable, setup_context: Callable) -> None:
        class Operation(torch.autograd.Function):
            forward = staticmethod(self.function)

        Operation.backward = staticmethod(backward)
        Operation.setup_context = staticmethod(setup_context)
        self.apply = Operation.apply


def register_flops(operation: Any, flops: Callable) -> None:
    """Tell torch's FLOP counter about an operation it does not know; before 2.2 it cannot be told."""
    from torch.utils import flop_counter

    if VERSION >= (2, 2) and operation not in flop_counter.flop_registry:
        flop_counter.register_flop_formula(operation)(flops)


def has_global_hook() -> bool:
    """Whether a hook runs at every module: torch's own ``_has_any_global_hook`` (2.2)."""
    ours = getattr(_module, '_has_any_global_hook', None)
    if ours is not None:
        return bool(ours())
    kinds = ('backward_pre', 'backward', 'forward_pre', 'forward')
    return any(getattr(_module, f'_global_{kind}_hooks') for kind in kinds)


def force_eager() -> AbstractContextManager:
    """A context in which compiled code runs as it is written: ``torch.compiler.set_stance`` (2.6)."""
    return torch.compiler.set_stance('force_eager') if VERSION >= (2, 6) else nullcontext()


def grad_scaler(device: str, **options: Any) -> Any:
    """``torch.amp.GradScaler`` (2.3); before, there is one for CUDA."""
    return torch.amp.GradScaler(device, **options) if VERSION >= (2, 3) else torch.cuda.amp.GradScaler(**options)


def gpu_computes_bfloat16() -> bool:
    """Whether the GPU has arithmetic for bfloat16; older versions of torch do not count emulation."""
    try:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    except TypeError:
        return torch.cuda.is_bf16_supported()


def multiplies_in_tf32() -> bool:
    """Whether matrix products of float32 may use TF32 on a GPU; of the two settings, each refuses to be read where the
    other was set (2.9)."""
    matmul = torch.backends.cuda.matmul
    try:
        return matmul.allow_tf32
    except RuntimeError:
        return matmul.fp32_precision == 'tf32'


def is_divided(value: Any) -> TypeGuard[Any]:
    """Whether this process holds a part of a tensor, a DTensor, which older versions keep elsewhere."""
    return hasattr(value, 'full_tensor')


def total_norm(tensors: list[torch.Tensor]) -> torch.Tensor:
    """``torch.nn.utils.get_total_norm`` (2.6)."""
    if VERSION >= (2, 6):
        return torch.nn.utils.get_total_norm(tensors)
    return torch.stack([tensor.norm() for tensor in tensors]).norm() if tensors else torch.zeros(())


def left_by_old_compilers(forward: Callable) -> Callable:
    """Decorate what ``torch.compile`` calls as it is written where :data:`COMPILES` is False."""
    return forward if COMPILES else torch.compiler.disable(forward)
