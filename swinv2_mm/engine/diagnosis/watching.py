"""Watching one training step, forward and backward, for the first module that does not compute finite numbers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from swinv2_mm.engine.mmengine_internals import losses_of


@dataclass(frozen=True)
class Output:
    """The output of one call of a module, in numbers.

    Attributes:
        name: The module, with dots.
        low: The smallest finite number, NaN if there is none.
        high: The largest.
        finite: The share of finite numbers, from 0 to 1.
    """

    name: str
    low: float
    high: float
    finite: float


@dataclass
class Trace:
    """The course of a step.

    Attributes:
        outputs: Of every call of a module up to the first that is not finite, in the order of their end.
        module: The first bad module: of the forward pass or, where all of that is finite, of the backward pass; empty
            for the model itself, None for none.
        reason: What is wrong with it, as the end of a sentence about it.
        losses: The terms of the loss.
    """

    outputs: list[Output] = field(default_factory=list)
    module: str | None = None
    reason: str = ''
    losses: dict[str, float] = field(default_factory=dict)


def watch_step(model: nn.Module, batch: Any, context: AbstractContextManager | None = None) -> Trace:
    """Run a training step without its update, and find the first module that does not compute finite numbers.

    A child ends before its parent, so that the first module to end with a bad output is the innermost one. In the
    backward pass, the last module that took the first bad tensor has made its gradient bad. Gradients of the model are
    lost. The backward pass runs even where the forward pass was bad: other processes may wait in it.

    Args:
        model: Of mmengine's kind, without a wrapper around it.
        batch: As the data loader makes it.
        context: Of the forward pass, such as autocast.
    """
    trace = Trace()
    forward, backward = _Forward(trace), _Backward()
    model.zero_grad()
    handles = []
    try:
        for name, module in model.named_modules():
            if module is not model:
                handles += forward.hook(name, module) + backward.hook(name, module)
        # Compiled code ignores hooks.
        with torch.compiler.set_stance('force_eager'):
            with context or nullcontext():
                losses = losses_of(model, batch)
            loss, logged = model.parse_losses(losses)
            trace.losses = {name: float(value.detach()) for name, value in logged.items() if 'loss' in name}
            loss.backward()
    except Exception:
        if trace.module is None:
            raise
        return trace  # a later module may refuse bad numbers, as the matching in DETR's descendants does
    finally:
        for handle in handles + backward.handles:
            handle.remove()
        model.zero_grad()
    if trace.module is None and not loss.isfinite():
        trace.module, trace.reason = '', 'makes a loss that is not finite of modules whose outputs all are'
    elif trace.module is None and backward.name is not None:
        trace.module, trace.reason = backward.name, backward.reason
    return trace


class _Forward:
    """Records the outputs of modules, up to the first one that is not finite."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def hook(self, name: str, module: nn.Module) -> list:
        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if self.trace.module is None:
                self.note(name, module, (args, kwargs), output)

        return [module.register_forward_hook(after, with_kwargs=True)]

    @torch.no_grad()
    def note(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        tensors = list(floats_in(output))
        if not tensors:
            return
        seen = summary(name, tensors)
        self.trace.outputs.append(seen)
        if seen.finite == 1:
            return
        taken = [tensor for tensor in floats_in(inputs) if not any(tensor is other for other in tensors)]
        damaged = [key for key, weight in module.named_parameters(recurse=False) if not _finite(weight)]
        if damaged:
            cause = f'its own {" and ".join(damaged)} is not finite'
        elif all(map(_finite, taken)):
            cause = 'of finite inputs'
        else:
            cause = 'of inputs that are not finite and that no module made, such as targets'
        self.trace.module = name
        self.trace.reason = f'puts out {1 - seen.finite:.1%} NaN or infinite numbers, {cause}'


class _Backward:
    """Records the first gradient that is not finite."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.reason = ''
        self.handles: list = []
        self._first: Tensor | None = None

    def hook(self, name: str, module: nn.Module) -> list:
        def before(module: nn.Module, args: tuple, kwargs: dict) -> None:
            self.watch((args, kwargs), name, 'gives its input a gradient that is not finite')

        def after(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            self.watch(output, name, 'gets a gradient that is not finite from what its parent does with its output')

        for key, weight in module.named_parameters(recurse=False):
            self.watch(weight, name, f'gives its {key} a gradient that is not finite')
        return [
            module.register_forward_pre_hook(before, with_kwargs=True),
            module.register_forward_hook(after, with_kwargs=True),
        ]

    def watch(self, value: Any, name: str, reason: str) -> None:
        for tensor in floats_in(value):
            if tensor.requires_grad:
                self.handles.append(tensor.register_hook(self._note(name, reason)))

    def _note(self, name: str, reason: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            # The hooks of one tensor run in the order in which they were registered, with one and the same gradient:
            # the last is that of the innermost module that took it.
            if gradient is self._first or (self._first is None and not _finite(gradient)):
                self._first, self.name, self.reason = gradient, name, reason

        return note


def floats_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested containers and data samples."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, dict | BaseDataElement):
        for inner in value.values():
            yield from floats_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from floats_in(inner)
    elif isinstance(getattr(value, 'tensor', None), Tensor):  # boxes of mmdet
        yield from floats_in(value.tensor)


def summary(name: str, tensors: Iterable[Tensor]) -> Output:
    """Summarise the numbers of some tensors."""
    low, high, finite, number = float('inf'), float('-inf'), 0, 0
    for tensor in tensors:
        good = tensor[tensor.isfinite()]
        number += tensor.numel()
        finite += good.numel()
        if good.numel():
            low, high = min(low, float(good.min())), max(high, float(good.max()))
    return Output(name, *((low, high) if finite else (float('nan'),) * 2), finite / number)


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
