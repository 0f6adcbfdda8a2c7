"""Let a model on the meta device take the path of a GPU or of this CPU, with autocast, without such a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from swinv2_mm.engine.recipe import operators
from swinv2_mm.models import attention, cache, position_bias, window
from swinv2_mm.models.kernels import choose, cosine_attention, cpp, cpp_attention, cpp_token_passes
from swinv2_mm.models.kernels.gpu import usable

Pair = tuple[int, int]

# What autocast computes in half precision, on all devices, and in float32, on a GPU and on a CPU (torch's tables, as
# far as models of the frameworks call it).
_NARROW = {
    *(F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d, F.scaled_dot_product_attention),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.addbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm),
}
_WIDE_ON_GPU = {
    *(F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.softplus, F.normalize, F.grid_sample),
    *(F.cross_entropy, F.nll_loss, F.binary_cross_entropy_with_logits, F.mse_loss, F.l1_loss, F.smooth_l1_loss),
    *(torch.softmax, torch.log_softmax, torch.exp, torch.log, torch.pow, torch.sum, torch.prod, torch.cumsum),
    *(torch.norm, torch.cdist, Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.sum),
    *(Tensor.prod, Tensor.cumsum, Tensor.norm),
}
_WIDE_ON_CPU = {F.mse_loss, F.grid_sample, F.nll_loss}


class Autocast(TorchFunctionMode):
    """Autocast of a device to a half type, for tensors whose device has none."""

    def __init__(self, dtype: torch.dtype | None, device: str) -> None:
        super().__init__()
        self.dtype = dtype  # None where it is off
        self.wide = _WIDE_ON_GPU if device == 'cuda' else _WIDE_ON_CPU
        self.kept: dict[int, Tensor] = {}  # narrowed parameters, which autocast keeps until its context ends

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.dtype is None:
            return func(*args, **(kwargs or {}))
        if func in _NARROW:
            args, kwargs = tree_map(self._narrow, (args, kwargs or {}))
        elif func in self.wide:
            args, kwargs = tree_map(lambda x: x.float() if _is_half(x) else x, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """A context without autocast."""
        dtype, self.dtype = self.dtype, None
        try:
            yield
        finally:
            self.dtype = dtype

    def forget(self) -> None:
        """The context has ended."""
        self.kept.clear()

    def _narrow(self, x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not isinstance(x, torch.nn.Parameter):
            return x.to(self.dtype)
        if id(x) not in self.kept:
            self.kept[id(x)] = x.to(self.dtype)
        return self.kept[id(x)]


def _is_half(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype in operators.HALVES


@contextlib.contextmanager
def as_on(device: str, autocast: Autocast) -> Iterator[None]:
    """Let models on the meta device compute as on ``'cuda'``, an NVIDIA GPU from Ampere on, or as on this ``'cpu'``.

    What the model keeps between calls is kept, too, until the end.
    """
    caches = window._kept_plan, position_bias._kept_coords, position_bias._kept_offset_index, attention._kept_zeros
    answers = _on_gpu(autocast) if device == 'cuda' else _on_cpu(autocast)
    with contextlib.ExitStack() as stack:
        for place in (cache, choose):
            stack.enter_context(mock.patch.object(place, 'is_recorded', lambda: False))
        for place in (window, attention, position_bias):
            stack.enter_context(mock.patch.object(place, 'may_keep', lambda device: True))
        stack.enter_context(mock.patch.object(choose, 'is_autocast', lambda x: autocast.dtype is not None))
        stack.enter_context(mock.patch.object(choose, 'without_autocast', lambda x: autocast.off()))
        # torch.autocast knows no meta device.
        stack.enter_context(mock.patch.object(operators, '_lacks_kernel', lambda x: 'cpu' if _is_half(x) else None))
        for place, name, answer in answers:
            stack.enter_context(mock.patch.object(place, name, answer))
        for kept in caches:
            kept.cache_clear()
            stack.callback(kept.cache_clear)
        yield


def _on_gpu(autocast: Autocast) -> Iterator[tuple[Any, str, Callable]]:
    yield usable, '_is_nvidia', lambda x: True
    yield usable, 'capability', lambda device: (8, 0)
    yield choose, 'linear_dtype', lambda layer, x: autocast.dtype or x.dtype


def _on_cpu(autocast: Autocast) -> Iterator[tuple[Any, str, Callable]]:
    def product_dtype(x: Tensor) -> torch.dtype:
        return x.dtype if choose.has_arithmetic(x.dtype) else torch.float32

    def in_useful_type(function: Callable[[Tensor], Any], x: Tensor) -> Any:
        if autocast.dtype is None or choose.has_arithmetic(autocast.dtype):
            return function(x)
        with autocast.off():
            return function(x.float())

    def attention_by_cpp(backend: str, x: Tensor, head_width: int, side: Pair, *logits: torch.dtype) -> bool:
        fits = head_width <= choose.CPP_HEAD_WIDTH and side[0] * side[1] <= choose.CPP_SLOTS
        return backend != 'sdpa' and fits and reads(x) and not {*logits} - {torch.float32} and cpp.library() is not None

    def reads(x: Tensor) -> bool:
        return x.dtype in cpp.TYPES

    yield choose, 'linear', lambda x: 'pieces'
    yield choose, 'autocast_dtype', lambda device: autocast.dtype
    yield choose, '_cpp_reads', reads
    yield choose, 'in_useful_type', in_useful_type
    yield choose, 'attention_by_cpp', attention_by_cpp
    yield choose, 'logits_in_cache', lambda x: True
    for place in (choose, cosine_attention):
        yield place, 'product_dtype', product_dtype
    for place in (cpp_attention, cpp_token_passes):  # there are no numbers to compute with
        yield place, 'run', lambda *args: None
        yield place, 'check', lambda *args: None


def again_in_backward(blocks: Iterable[nn.Module], autocast: Autocast) -> None:
    """Let blocks that are computed again in the backward pass (with_cp) find the modes of the forward pass.

    torch leaves modes while a function that they have seen runs, and ``backward`` is one. As on a real device,
    autocast narrows the parameters of a block again.
    """

    def wrapped(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def again(x: Tensor) -> Tensor:
            if torch._C._current_graph_task_id() == -1:  # not in a backward pass
                return forward(x)
            autocast.forget()
            with autocast, torch.device('meta'):
                try:
                    return forward(x)
                finally:
                    autocast.forget()

        return again

    for block in blocks:
        block.forward = wrapped(block.forward)  # type: ignore[method-assign]
