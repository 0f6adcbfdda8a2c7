"""What the values of tensors would tell a training step, answered as largely as can be where there are no values."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, Union
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.structures import instance_data
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

# Operations whose result depends on shapes and numbers alone.
_CONSTANT = {
    *('full', 'zeros', 'ones', 'arange', 'full_like', 'zeros_like', 'ones_like', 'new_full', 'new_zeros', 'new_ones'),
}
# Tensors of at most so many numbers keep their values.
KNOWN = 256


class Answers(TorchDispatchMode):
    """Answers what tensors without values cannot: which elements are not zero, which are alike, what a number is.

    All elements are true and all differ, so whatever a head selects is as large as it can be: samplers draw as many
    boxes as they are configured for. A number is 1. What is copied to the CPU is zero. Small tensors that Python made
    of numbers, as the shapes of maps, keep their values, and so does what is computed of them.

    Args:
        objects: Labels that differ in a map of labels, one per object of an image.
    """

    def __init__(self, objects: int) -> None:
        super().__init__()
        self.objects = objects

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split('::')[1]
        first = args[0] if args else None
        tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if tensors and all(_value(x) is not None for x in tensors):
            return _with_values(func, name, args, kwargs)
        if name in _CONSTANT:
            return _constant(func, args, kwargs)
        if func._schema.is_mutable and isinstance(first, Tensor) and _value(first) is not None:
            _value(first).untyped_storage().changed = True  # type: ignore[union-attr]  # of all its views
        if isinstance(first, Tensor) and first.is_meta:
            if name in _UNIQUE:
                count = first.numel() if first.ndim == 1 else min(first.numel(), self.objects)
                return _unique(first, count)
            if name in _ANSWERS:
                return _ANSWERS[name](*args, **kwargs)
            if name == '_to_copy' and getattr(kwargs.get('device'), 'type', 'meta') == 'cpu':
                with _disable_current_modes():
                    return torch.zeros(first.shape, dtype=kwargs.get('dtype') or first.dtype, device='cpu')
            if name in ('index', 'index_put', 'index_put_', '_index_put_impl_', '_unsafe_index'):
                args = (first, _all_true(args[1]), *args[2:])
            if name == 'copy_' and not args[1].is_meta:
                return first
        elif name == 'copy_' and isinstance(first, Tensor) and any(_is_meta(x) for x in args[1:]):
            return first
        elif name not in ('_to_copy', 'lift_fresh', 'detach') and any(map(_is_meta, tree_flatten((args, kwargs))[0])):
            # Numbers of the CPU among tensors of the device.
            args = tuple(_on_meta(x) for x in args)
        return func(*args, **kwargs)


def _value(x: Tensor) -> Tensor | None:
    """The values of a small tensor, if they are known."""
    value = getattr(x, 'value', None) if x.is_meta else x if x.numel() <= KNOWN else None
    return None if value is None or hasattr(value.untyped_storage(), 'changed') else value


def _with_values(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """The result of a function of known tensors: on the meta device, where its values are kept, or on the CPU."""
    moved = kwargs.get('device')
    on_meta = moved.type == 'meta' if moved is not None else any(map(_is_meta, tree_flatten((args, kwargs))[0]))
    with _disable_current_modes():
        real = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        if func._schema.is_mutable:
            return args[0] if name.endswith('_') and real is not None else real
        return tree_map(_kept, real) if on_meta else real


def _constant(func: Any, args: Any, kwargs: Any) -> Any:
    """A new tensor whose values do not depend on those of others."""
    empty = func(*args, **kwargs)
    if empty.is_meta and empty.numel() <= KNOWN:
        with _disable_current_modes():
            like = [torch.empty(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x for x in args]
            empty.value = func(*like, **(kwargs | dict(device=torch.device('cpu'))))
    return empty


def _on_cpu(x: Any) -> Any:
    return _value(x) if isinstance(x, Tensor) else torch.device('cpu') if isinstance(x, torch.device) else x


def _kept(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    empty = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device='meta')
    empty.value = x  # type: ignore[attr-defined]
    return empty


def _is_meta(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_meta


def _on_meta(x: Any) -> Any:
    if isinstance(x, Tensor) and not x.is_meta and x.ndim:
        return torch.empty(x.shape, dtype=x.dtype, device='meta')
    return [_on_meta(one) for one in x] if isinstance(x, list) else x


def _nonzero(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(), x.ndim), dtype=torch.int64)


def _all_true(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks in an index as the places of all their elements."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            places += [torch.empty(index.numel(), dtype=torch.int64, device='meta') for _ in range(index.ndim)]
        else:
            places.append(_on_meta(index))
    return places


def _number(x: Tensor) -> Any:
    return True if x.dtype == torch.bool else 1.0 if x.is_floating_point() else 1


def _unique(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers that differ, where each lies, and how often each is there."""
    return x.new_empty(count), x.new_empty(x.shape, dtype=torch.int64), x.new_empty(count, dtype=torch.int64)


def _nowhere(x: Tensor) -> Tensor:
    """No number is NaN or infinite."""
    empty = torch.empty(x.shape, dtype=torch.bool, device='meta')
    with _disable_current_modes():
        empty.value = torch.zeros((), dtype=torch.bool).expand(x.shape)  # type: ignore[attr-defined]
    return empty


_UNIQUE = {'_unique2', '_unique', 'unique_consecutive'}
_ANSWERS = {
    'nonzero': _nonzero,
    '_local_scalar_dense': _number,
    'is_nonzero': lambda x: True,
    'equal': lambda x, y: True,
    'allclose': lambda *_, **__: True,
    'masked_select': lambda x, mask: x.new_empty(torch.broadcast_shapes(x.shape, mask.shape).numel()),
    'isnan': _nowhere,
    'isinf': _nowhere,
    'bincount': lambda x, weights=None, minlength=0: x.new_empty(max(minlength, 1)),
}


class _Kernels:
    """Stands for mmcv's compiled operators: they fill tensors that their callers allocate."""

    def __getattr__(self, name: str) -> Any:
        return getattr(_Made, name, lambda *args, **kwargs: None)


class _Made:
    """The operators that return something: NMS keeps all boxes."""

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.arange(len(boxes), device=boxes.device)

    @staticmethod
    def softnms(boxes: Tensor, scores: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.arange(len(boxes), device=boxes.device)

    @staticmethod
    def ms_deform_attn_forward(value: Tensor, shapes: Tensor, start: Tensor, places: Tensor, *_: Any, **__: Any) -> Any:
        return value.new_empty(len(value), places.shape[1], value.shape[2] * value.shape[3])


class _Functional:
    """torch's functions, in MMDetection's focal loss: on a GPU it takes labels as they are."""

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)

    @staticmethod
    def one_hot(labels: Tensor, num_classes: int) -> Any:
        return _Labels(labels)


class _Labels:
    """Labels of which somebody wants some classes."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __getitem__(self, some: Any) -> Tensor:
        return self.labels


def _focal_loss(fused: Callable, written: Callable) -> Callable:
    return lambda pred, target, *args, **kwargs: (fused if target.ndim == 1 else written)(pred, target, *args, **kwargs)


def _refine(head: Any, sampled: Any, *_: Any) -> list:
    """The boxes that a stage of a cascade hands on: those that it got, per image, which their values would tell."""
    return [instance_data.InstanceData(bboxes=torch.empty_like(one.priors)) for one in sampled]


@contextlib.contextmanager
def without_values(device: str, objects: int) -> Iterator[None]:
    """Let the heads of the frameworks run on the meta device, with the operators that they take on a device."""
    from_proposals = sys.modules.get('mmdet.models.roi_heads.bbox_heads.bbox_head')
    with contextlib.ExitStack() as stack:
        for name, module in [*sys.modules.items()]:
            if name.startswith('mmcv.ops.') and hasattr(module, 'ext_module'):
                stack.enter_context(mock.patch.object(module, 'ext_module', _Kernels()))
        focal = sys.modules.get('mmdet.models.losses.focal_loss')
        attention = sys.modules.get('mmcv.ops.multi_scale_deform_attn')
        # mmengine knows the tensors of CPUs and of GPUs.
        known = Union[(*instance_data.IndexType.__args__, Tensor)]
        stack.enter_context(mock.patch.object(instance_data, 'IndexType', known))
        if device == 'cuda' and focal:
            stack.enter_context(mock.patch.object(focal, 'F', _Functional()))
            either = _focal_loss(focal.sigmoid_focal_loss, focal.py_sigmoid_focal_loss)
            stack.enter_context(mock.patch.object(focal, 'py_sigmoid_focal_loss', either))
        if device == 'cuda' and attention:

            def fused(value: Tensor, shapes: Tensor, places: Tensor, weights: Tensor) -> Tensor:
                start = torch.empty(len(shapes), dtype=torch.int64, device=value.device)
                return attention.MultiScaleDeformableAttnFunction.apply(value, shapes, start, places, weights, 64)

            stack.enter_context(mock.patch.object(attention, 'multi_scale_deformable_attn_pytorch', fused))
        if from_proposals:
            stack.enter_context(mock.patch.object(from_proposals.BBoxHead, 'refine_bboxes', _refine))
        with Answers(objects):
            yield
