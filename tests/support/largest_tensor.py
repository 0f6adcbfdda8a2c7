"""The largest tensor that a computation makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest one, views left out."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and not func.is_view:
                self.numel = max(self.numel, tensor.numel())
        return result
