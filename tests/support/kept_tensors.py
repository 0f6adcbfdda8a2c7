"""What the model's modules and models keep between calls: no tensor of a tracer, an exporter or inference mode."""

import dataclasses
import functools
import gc
import importlib
import pkgutil

import torch
from torch import Tensor, nn

from swinv2_mm import models
from swinv2_mm.models.cache import BoundedCache


def caches():
    """Every function of the model's modules that keeps results, and every dict of theirs, by name."""
    found = {}
    for info in pkgutil.walk_packages(models.__path__, f'{models.__name__}.'):
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # Triton is not everywhere
            continue
        for name, value in vars(module).items():
            keeps = isinstance(value, functools._lru_cache_wrapper) and value.__module__ == module.__name__
            keeps |= isinstance(value, BoundedCache)
            if keeps or (type(value) is dict and not name.startswith('__')):
                found[f'{module.__name__}.{name}'] = value
    return found


def clear_caches():
    for cache in caches().values():
        if hasattr(cache, 'cache_clear'):
            cache.cache_clear()


def tensors_in(value, seen=None):
    """All tensors below a value: in containers, data classes, and the results that an ``lru_cache`` keeps."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, functools._lru_cache_wrapper):
        for below in gc.get_referents(value):
            if not callable(below):
                yield from tensors_in(below, seen)
    elif isinstance(value, BoundedCache):
        yield from tensors_in(value.kept, seen)
    elif dataclasses.is_dataclass(value):
        yield from tensors_in(vars(value), seen)
    elif isinstance(value, dict):
        for below in (*value.keys(), *value.values()):
            yield from tensors_in(below, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for below in value:
            yield from tensors_in(below, seen)


def is_plain(tensor, devices=('cpu',)):
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.device.type in devices
        and not tensor.is_inference()
        and not torch._is_functional_tensor(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def assert_nothing_is_left(*used):
    """Neither in caches of the process nor in the attributes of these models.

    Of a pass on the meta device its tables may be kept, for that device.
    """
    for name, cache in caches().items():
        for tensor in tensors_in(cache):
            assert is_plain(tensor, ('cpu', 'meta')) and tensor.grad_fn is None, name
    for model in used:
        for name, module in model.named_modules():
            own = {key: value for key, value in vars(module).items() if key != '_modules'}
            assert all(is_plain(tensor) for tensor in tensors_in(own)), name
