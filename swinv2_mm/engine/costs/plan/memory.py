"""The bytes of a training step, followed from one allocation to the next without memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

# A block of torch's allocator on a GPU.
BLOCK = 512


@dataclass(frozen=True)
class Moment:
    """What was there when memory was fullest, for one state of the gradients and of the units of FSDP2; in bytes."""

    gradients: int  # of parameters
    finished: int  # of these, of units whose backward pass is over
    gathered: int  # parameters of the unit at work and of the next one
    reducing: int  # gradients of the unit that finished last


@dataclass(eq=False)
class Tally(TorchDispatchMode):
    """Follows the storages of all tensors that appear while it is entered, but for parameters and buffers.

    A storage is there from the operation that makes it until its last reference is gone, as in a real step: autograd,
    checkpointing and the frameworks hold the same references to tensors without memory.

    Args:
        units: The parameters of each unit that FSDP2 gathers; those of no unit belong to the root.
    """

    units: Sequence[nn.Module] = ()
    bytes: int = 0  # there now
    gradients: int = 0  # of these, gradients of parameters
    peak: int = 0
    peak_gradients: int = 0  # at the peak
    fullest: dict[Moment, int] = field(default_factory=dict)  # bytes beside the gradients

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[int, weakref.ref]] = {}
        self._known: set[int] = set()  # parameters and buffers
        self._of_parameters: dict[int, int] = {}  # bytes of gradients by storage
        self._unit_of = {id(p): index for index, unit in enumerate(self.units) for p in unit.parameters()}
        self._sizes = [sum(p.nbytes for p in unit.parameters()) for unit in self.units]
        self._waiting = [sum(p.requires_grad for p in unit.parameters()) for unit in self.units]
        self._seen: set[int] = set()  # parameters that have a gradient
        self._unit_gradients = [0] * len(self.units)
        self._finished = self._gathered = self._reducing = 0

    def leave_out(self, model: nn.Module) -> None:
        """Do not count the parameters and buffers of a model, and watch its gradients and units."""
        for tensor in (*model.parameters(), *model.buffers()):
            self._known.add(tensor.untyped_storage()._cdata)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._accumulated)
        for index, unit in enumerate(self.units):
            unit.register_forward_pre_hook(partial(self._forward, index))
            unit.register_forward_hook(partial(self._watch_backward, index))

    def start(self) -> None:
        """Forget the peak so far."""
        self.peak, self.peak_gradients = self.bytes, self.gradients
        self.fullest.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = self.bytes
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Tensor) and leaf.is_meta:
                self._note(leaf)
        if self.bytes > before:
            self._look()
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._live and key not in self._known:
            size = -(-storage.nbytes() // BLOCK) * BLOCK
            self._live[key] = size, weakref.ref(storage, partial(self._gone, key))
            self.bytes += size

    def _gone(self, key: int, _: Any) -> None:
        size, _ = self._live.pop(key)
        self.bytes -= size
        self.gradients -= self._of_parameters.pop(key, 0)

    def _look(self) -> None:
        if self.bytes > self.peak:
            self.peak, self.peak_gradients = self.bytes, self.gradients
        moment = Moment(self.gradients, self._finished, self._gathered, self._reducing)
        self.fullest[moment] = max(self.fullest.get(moment, 0), self.bytes - self.gradients)

    def _accumulated(self, parameter: Tensor) -> None:
        if id(parameter) in self._seen:  # a later batch adds to it
            return
        self._seen.add(id(parameter))
        key, size = parameter.grad.untyped_storage()._cdata, 0  # type: ignore[union-attr]
        if key in self._live and key not in self._of_parameters:  # gradients may share a storage
            size = self._of_parameters[key] = self._live[key][0]
        self.gradients += size
        unit = self._unit_of.get(id(parameter))
        if unit is not None:
            self._waiting[unit] -= 1
            self._unit_gradients[unit] += size
            if not self._waiting[unit]:
                self._finished += self._unit_gradients[unit]
                self._reducing = self._unit_gradients[unit]
                self._gathered = self._sizes[unit - 1] if unit else 0
        self._look()

    def _forward(self, index: int, *_: Any) -> None:
        # FSDP2 gathers a unit beside the one before it.
        self._gathered = self._sizes[index] + self._sizes[min(index + 1, len(self.units) - 1)]

    def _watch_backward(self, index: int, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(partial(self._backward, index))

    def _backward(self, index: int, _: Tensor) -> None:
        self._gathered = self._sizes[index] + self._sizes[max(index - 1, 0)]
