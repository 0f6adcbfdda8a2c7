"""A cache bounded in bytes: training at many image sizes keeps many small plans, a few large ones fill it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar('Result')


class BoundedCache(Generic[Result]):
    """Results of a function by its arguments; the least recently used go once all take more than ``max_bytes``.

    Args:
        function: Of arguments that can be hashed.
        size_of: The bytes of a result.
        max_bytes: What all may take; the latest is kept in any case.
    """

    def __init__(self, function: Callable[..., Result], size_of: Callable[[Result], int], max_bytes: int) -> None:
        self.function, self.size_of, self.max_bytes = function, size_of, max_bytes
        self.kept: OrderedDict[tuple[Hashable, ...], Result] = OrderedDict()
        self.bytes = 0
        self._lock = Lock()  # threads of one process share it

    def __call__(self, *key: Hashable) -> Result:
        with self._lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key]
        result = self.function(*key)
        with self._lock:
            if key not in self.kept:
                self.kept[key] = result
                self.bytes += self.size_of(result)
            while self.bytes > self.max_bytes and len(self.kept) > 1:
                self.bytes -= self.size_of(self.kept.popitem(last=False)[1])
        return result

    def cache_clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self.kept.clear()
            self.bytes = 0
