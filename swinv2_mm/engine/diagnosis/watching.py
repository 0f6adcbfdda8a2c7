"""Repeats a training step and finds the first module that does not compute finite numbers.

A child ends before its parent, so that the first module to end with a bad output is the innermost one. In the backward
pass, the last module that took the first bad tensor has made its gradient bad.
"""

import math
import random
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from swinv2_mm.compat import autocast_dtype, force_eager
from swinv2_mm.engine.mmengine_internals import losses_of


class Step:
    """A step that is about to begin: its batch, the state of all generators, and mixed precision.

    Args:
        where: Which step it is, in words.
        batch: As the data loader made it.
    """

    def __init__(self, where: str, batch: Any) -> None:
        self.where, self.batch, self.device = where, batch, get_device()
        self.autocast = autocast_dtype(self.device)
        self.random = [(random.setstate, random.getstate()), (np.random.set_state, np.random.get_state())]
        self.random.append((torch.set_rng_state, torch.get_rng_state()))
        if torch.cuda.is_available():
            self.random.append((torch.cuda.set_rng_state, torch.cuda.get_rng_state()))

    def repeat(self, model: BaseModel) -> str:
        """Run the step again, without its update; gradients of the model are lost.

        The backward pass runs even where the forward pass was bad: other processes may wait in it.

        Args:
            model: Without a wrapper around it.

        Returns:
            A sentence that names the first bad module, empty if all was finite.
        """
        for restore, state in self.random:
            restore(state)
        precision = nullcontext() if self.autocast is None else torch.autocast(self.device, self.autocast)
        watch, terms, of_loss = _Watch(model), {}, None
        model.zero_grad()
        try:
            # Compiled code ignores hooks.
            with force_eager(), precision:
                losses = losses_of(model, self.batch)
            loss, terms = model.parse_losses(losses)
            loss.backward()
            if not loss.isfinite():
                of_loss = 'the model itself', 'makes a loss that is not finite of modules whose outputs all are'
        except Exception:  # a later module may refuse bad numbers, as the matching in DETR's descendants does
            if watch.forward is None:
                raise
        finally:
            watch.end()
            model.zero_grad()
        found = watch.forward or of_loss or watch.backward
        if found is None:
            return ''
        values = {name: float(value.detach()) for name, value in terms.items() if 'loss' in name}
        bad = ', '.join(f'{name} {value}' for name, value in values.items() if not math.isfinite(value))
        return f'The first bad module is {found[0]}, which {found[1]}.' + (f' The loss: {bad}.' if bad else '')


class _Watch:
    """Hooks on all modules below a model; ``forward`` and ``backward`` are the first bad one of a pass, and why."""

    def __init__(self, model: nn.Module) -> None:
        self.forward: tuple[str, str] | None = None
        self.backward: tuple[str, str] | None = None
        self.gradient: Tensor | None = None
        self.handles: list = []
        self.handles.append(model.register_forward_pre_hook(self.begin))
        for name, module in model.named_modules():
            if module is not model:
                self.handles.append(module.register_forward_pre_hook(partial(self.before, name), with_kwargs=True))
                self.handles.append(module.register_forward_hook(partial(self.after, name), with_kwargs=True))
                for key, weight in module.named_parameters(recurse=False):
                    self.follow(weight, name, f'gives its {key} a gradient that is not finite')

    def end(self) -> None:
        for handle in self.handles:
            handle.remove()

    def begin(self, model: nn.Module, args: tuple) -> None:
        """Look at the parameters that are in no module below the model, whose outputs they would spoil."""
        damaged = [key for key, weight in model.named_parameters(recurse=False) if not _finite(weight)]
        if damaged:
            self.forward = 'the model itself', f'has a {" and a ".join(damaged)} that is not finite'

    def before(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.follow((args, kwargs), name, 'gives its input a gradient that is not finite')

    def after(self, name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.follow(output, name, 'gets a gradient that is not finite from what its parent does with its output')
        tensors = list(floats_in(output))
        if self.forward or all(map(_finite, tensors)):
            return
        bad = sum(int((~tensor.isfinite()).sum()) for tensor in tensors) / sum(tensor.numel() for tensor in tensors)
        taken = [tensor for tensor in floats_in((args, kwargs)) if not any(tensor is other for other in tensors)]
        damaged = [key for key, weight in module.named_parameters(recurse=False) if not _finite(weight)]
        cause = 'of inputs that are not finite and that no module made, such as targets'
        if damaged:
            cause = f'its own {" and ".join(damaged)} is not finite'
        elif all(map(_finite, taken)):
            cause = 'of finite inputs'
        self.forward = name, f'puts out {bad:.1%} NaN or infinite numbers, {cause}'

    def follow(self, value: Any, name: str, reason: str) -> None:
        """Watch the gradients of the tensors in a value."""
        for tensor in floats_in(value):
            if tensor.requires_grad:
                self.handles.append(tensor.register_hook(partial(self.note, (name, reason))))

    def note(self, found: tuple[str, str], gradient: Tensor) -> None:
        # The hooks of one tensor run in the order in which they were registered, with one and the same gradient: the
        # last is that of the innermost module that took it.
        if gradient is self.gradient or (self.gradient is None and not _finite(gradient)):
            self.gradient, self.backward = gradient, found


def floats_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in nested containers and data samples."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield value
    elif isinstance(value, dict | BaseDataElement):
        yield from floats_in(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from floats_in(inner)
    elif isinstance(getattr(value, 'tensor', None), Tensor):  # boxes of mmdet
        yield value.tensor


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
