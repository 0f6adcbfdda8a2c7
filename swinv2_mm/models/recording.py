"""Who watches: whether torch's operations are traced, exported or replaced rather than just computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode


def is_traced() -> bool:
    """Whether a compiler, an exporter, ``torch.jit.trace`` or a transform of ``torch.func`` records what is done.

    It is then given the formulas as they are written, without functions of ours that it cannot look into.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def is_recorded() -> bool:
    """Whether tensors that are made now may be no ordinary ones: traced, fake, functional, or counted by a mode.

    Such a tensor must not be kept for later calls, and a kept one must not be mixed with them.
    """
    return is_traced() or _get_current_dispatch_mode() is not None


def may_keep(device: torch.device) -> bool:
    """Whether tensors that are made now on a device may be kept for later calls."""
    return device.type != 'meta' and not is_recorded()


def is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor has values in memory that kernels of ours can read: no subclass, fake or functional tensor."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and not torch._is_functional_tensor(tensor)
