"""mmcv's operators in mixed precision: what has no kernel for a type is computed in float32.

mmcv's CUDA operators know float16, and no bfloat16; those for CPUs know neither. Each is an autograd function, so the
base class finds all of them: multi-scale deformable attention, focal loss, RoIAlign, deformable convolution, CARAFE,
NMS and the others, in whichever head they are.
"""

import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

HALVES = (torch.bfloat16, torch.float16)


def widen_operators() -> None:
    """Let mmcv's operators take types that they have no kernel for, and return float32 for these, as autocast does for
    operations that need it; twice is as once. Gradients come back in the type of the inputs, by autograd."""
    for function in _operators():
        if not hasattr(function.forward, 'widened'):
            function.forward = staticmethod(_widened(function.forward))


def _operators() -> Iterator[Any]:
    """The autograd functions of mmcv that are imported."""
    if 'mmcv.ops' in sys.modules:
        yield from (kind for kind in Function.__subclasses__() if kind.__module__.startswith('mmcv.ops.'))


def _widened(forward: Callable) -> Callable:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        device = next((_lacks_kernel(value) for value in (*args, *kwargs.values()) if _lacks_kernel(value)), None)
        if device is None:
            return forward(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return forward(*map(to_float32, args), **{name: to_float32(value) for name, value in kwargs.items()})

    call.widened = True  # type: ignore[attr-defined]
    return call


def _lacks_kernel(value: Any) -> str | None:
    """The device type of a tensor whose type mmcv has no kernel for."""
    if isinstance(value, Tensor):
        device = value.device.type
        if value.dtype == torch.bfloat16 or (value.dtype == torch.float16 and device == 'cpu'):
            return device
    return None


def to_float32(value: Any) -> Any:
    """Tensors of half precision in float32, also inside of lists; anything else as it is."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in HALVES else value
    return type(value)(map(to_float32, value)) if type(value) in (list, tuple) else value
