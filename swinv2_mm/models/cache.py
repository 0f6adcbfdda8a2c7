"""What the model keeps between calls: a cache bounded in bytes, and the rule for which tensors may be kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

from swinv2_mm.compat import is_compiling, is_dynamo_compiling

Result = TypeVar('Result')


def is_traced() -> bool:
    """Whether a compiler, an exporter, ``torch.jit.trace`` or a transform of ``torch.func`` records the operations."""
    return is_compiling() or torch.jit.is_tracing() or peek_interpreter_stack() is not None


def is_recorded() -> bool:
    """Whether new tensors may be special ones: traced, fake or functional, or made under a dispatch mode.

    Such a tensor must not be kept for later calls, and a kept tensor must not be mixed with them.
    """
    return is_traced() or _get_current_dispatch_mode() is not None


def may_keep(device: torch.device) -> bool:
    """Whether tensors that are made now on a device may be kept for later calls."""
    return device.type != 'meta' and not is_recorded()


def is_symbolic(*sizes: int) -> bool:
    """Whether a compiler or an exporter lets these sizes stand for any size: no decision may then depend on them."""
    return is_dynamo_compiling() or any(isinstance(size, torch.SymInt) for size in sizes)


class BoundedCache(Generic[Result]):
    """Results of a function by its arguments; the least recently used are dropped above ``max_bytes``.

    Args:
        function: Its arguments can be hashed.
        size_of: Returns the bytes of a result.
        max_bytes: The limit for all results together; the latest one is always kept.
    """

    def __init__(self, function: Callable[..., Result], size_of: Callable[[Result], int], max_bytes: int) -> None:
        self.function, self.size_of, self.max_bytes = function, size_of, max_bytes
        self.kept: OrderedDict[tuple[Hashable, ...], Result] = OrderedDict()
        self.bytes = 0
        self._lock = Lock()  # the threads of a process share the cache

    def __call__(self, *key: Hashable) -> Result:
        with self._lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
            result = self.kept[key] = self.function(*key)
            self.bytes += self.size_of(result)
            while self.bytes > self.max_bytes and len(self.kept) > 1:
                self.bytes -= self.size_of(self.kept.popitem(last=False)[1])
            return result

    def cache_clear(self) -> None:
        """Empty the cache."""
        with self._lock:
            self.kept.clear()
            self.bytes = 0
