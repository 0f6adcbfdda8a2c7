"""What older versions of torch lack, down to 2.1: each name here goes when its version is no longer supported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules import module as _module

VERSION = tuple(int(part) for part in torch.__version__.split('+')[0].split('.')[:2])

# From 2.4 on, compilers see our operations as one node each, and from 2.6 on the models are tested under them.
COMPILES = VERSION >= (2, 4)


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
