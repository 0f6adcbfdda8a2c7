"""Registries of scope ``swinv2_mm``, children of mmengine's root registries.

mmengine imports ``<scope>.registry`` when it meets an unknown scope, and each registry imports its ``locations`` on
first use. So ``type='swinv2_mm.SwinTransformerV2'`` builds from MMDetection, MMSegmentation and plain mmengine without
``custom_imports``, and this module must import neither mmdet nor mmseg. Importing it also allows ``torch.load`` to read
the logged numbers in mmengine's checkpoints.
"""

from pickle import UnpicklingError
from typing import Any

import torch
from mmengine import registry as root
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from swinv2_mm import config_scope
from swinv2_mm.checkpoints.unpickling import of_numpy
from swinv2_mm.compat import VERSION


def _statistic(owner: type, name: str) -> object:
    """Stand in for ``getattr``, by which a pickle names methods of HistoryBuffer and could reach any other object."""
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError(f'Trying to load unsupported GLOBAL getattr({owner}, {name!r})')
    return getattr(HistoryBuffer, name)


OF_MMENGINE: list[Any] = [HistoryBuffer, (_statistic, 'builtins.getattr'), *of_numpy('int64', 'float64', 'float32')]
"""For resuming: logged numbers and best scores. A test proves each entry necessary by removing it."""

if VERSION >= (2, 6):  # before, torch.load reads them, and whatever else
    torch.serialization.add_safe_globals(OF_MMENGINE)
config_scope.install()


def _child(parent: root.Registry, *locations: str) -> root.Registry:
    return root.Registry(parent.name, parent=parent, scope='swinv2_mm', locations=list(locations))


DATASETS = _child(root.DATASETS, 'swinv2_mm.datasets.unlabelled')
MODELS = _child(root.MODELS, 'swinv2_mm.models')
HOOKS = _child(root.HOOKS, 'swinv2_mm.engine')
FUNCTIONS = _child(root.FUNCTIONS, 'swinv2_mm.engine')
OPTIM_WRAPPERS = _child(root.OPTIM_WRAPPERS, 'swinv2_mm.engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child(root.OPTIM_WRAPPER_CONSTRUCTORS, 'swinv2_mm.engine')
RUNNERS = _child(root.RUNNERS, 'swinv2_mm.engine')
TRANSFORMS = _child(root.TRANSFORMS, 'swinv2_mm.engine', 'swinv2_mm.datasets.unlabelled')
WEIGHT_INITIALIZERS = _child(root.WEIGHT_INITIALIZERS, 'swinv2_mm.engine')


def load_from_safetensors(filename: str, map_location: object = None) -> dict:
    """Read safetensors wherever mmengine takes a checkpoint; mmengine would unpickle them."""
    from swinv2_mm.checkpoints.files import read_file

    return read_file(filename)


CheckpointLoader.register_scheme(r'(?!\w+://).*\.safetensors$', load_from_safetensors, force=True)
