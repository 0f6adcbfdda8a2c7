"""The Python names that a checkpoint of weights may use, each replaced by an inert stand-in; and those of NumPy."""

from collections import OrderedDict
from typing import Any

import numpy as np


class _Ignored(dict):
    """An inert stand-in for an object that a training saved beside the weights, or for the function that makes it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass


# NumPy 2 moved these two functions; a file names the place that they had when it was written.
_NUMPY_MAKERS = {
    name: tuple(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core')) for name in ('_reconstruct', 'scalar')
}
_IGNORED = (
    'argparse.Namespace',
    'builtins.getattr',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.dtype',
    'numpy.ndarray',
    'pathlib.PosixPath',
    'pathlib._local.PosixPath',
    *(place for places in _NUMPY_MAKERS.values() for place in places),
)
INERT: list[Any] = [
    *((_Ignored, name) for name in _IGNORED),
    # Of all classes, torch lets a file put items only into OrderedDicts.
    *((OrderedDict, name) for name in ('yacs.config.CfgNode', 'mmengine.config.config.ConfigDict')),
]
"""For weights: configurations, logged numbers and paths of Microsoft's code, SimMIM, timm and mmengine, made inert.

None of these names is imported, and any other name is refused."""


def of_numpy(*kinds: str) -> list[Any]:
    """NumPy's arrays and scalars of some data types, in the form that a pickle names them."""
    makers = {'_reconstruct': np.empty(0).__reduce__()[0], 'scalar': np.float64().__reduce__()[0]}
    types = [type(np.dtype(kind)) for kind in kinds]
    return [
        np.ndarray,
        np.dtype,
        *types,
        *((makers[name], place) for name, places in _NUMPY_MAKERS.items() for place in places),
    ]
