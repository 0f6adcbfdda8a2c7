"""What mmengine pickles beside tensors, for ``torch.load`` to allow: each holds numbers, and runs nothing."""

from pickle import UnpicklingError

import numpy as np
from mmengine.logging import HistoryBuffer


def of_numpy(*kinds: str) -> list[object]:
    """NumPy's arrays and scalars of some data types, as a pickle names what makes them."""
    makers = {'_reconstruct': np.empty(0), 'scalar': np.float64()}
    return [
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in kinds),
        # NumPy 2 moved these two; a file names the place that they had when it was written.
        *(
            (made.__reduce__()[0], f'numpy.{core}.multiarray.{name}')
            for name, made in makers.items()
            for core in ('core', '_core')
        ),
    ]


def _statistic(owner: type, name: str) -> object:
    """Stand in for ``getattr``, by which pickle names the methods of HistoryBuffer: it gives those, nothing else.

    The real one would let a file walk from any class to its module's globals, and from there to anything.
    """
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(f'Trying to load unsupported GLOBAL getattr({owner}, {name!r})')
    return getattr(HistoryBuffer, name)


OF_MMENGINE = [HistoryBuffer, (_statistic, 'builtins.getattr'), *of_numpy('int64', 'float64', 'float32')]
"""Logged numbers and best scores. Each is needed to read mmengine's checkpoints: a test takes them away one by one."""
