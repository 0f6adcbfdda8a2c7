"""Saving a training step (weights, batch, random state, config) to a file, and repeating it elsewhere."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from swinv2_mm.checkpoints.files import read_file, write_file
from swinv2_mm.checkpoints.safe_globals import of_numpy
from swinv2_mm.engine.config import check_framework
from swinv2_mm.engine.diagnosis.watching import Trace, watch_step
from swinv2_mm.engine.recipe.precision import keep_boxes_in_float32
from swinv2_mm.engine.recipe.seeding import random_state, set_random_state
from swinv2_mm.errors import UserError


@dataclass(frozen=True)
class Step:
    """The inputs of a training step, besides the weights.

    Attributes:
        where: Which step it is, in words.
        batch: As the data loader made it.
        random: See :func:`~swinv2_mm.engine.recipe.seeding.random_state`.
        autocast: The data type of mixed precision, or None.
    """

    where: str
    batch: Any
    random: dict[str, Any]
    autocast: torch.dtype | None

    @classmethod
    def now(cls, where: str, batch: Any) -> Step:
        """Record the step that is about to begin."""
        device = get_device()
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return cls(where, batch, random_state(), autocast)

    def repeat(self, model: nn.Module) -> Trace:
        """Run the step again, without its update, and watch every module."""
        set_random_state(self.random)
        precision = nullcontext() if self.autocast is None else torch.autocast(get_device(), self.autocast)
        return watch_step(model, self.batch, precision)


def write_step(path: Path, step: Step, weights: dict[str, Tensor], cfg: Config) -> None:
    """Write a step, crash-safe: the file appears complete or not at all.

    Raises:
        OSError: It cannot be written.
    """
    write_file(weights, path, vars(step) | {'config': cfg.to_dict()})


def read_step(path: str | Path) -> tuple[Step, dict[str, Tensor], Config]:
    """Read a step without running code from the file: it may hold tensors, numbers and data samples only.

    Returns:
        The step, the weights and the config.

    Raises:
        UserError: The file is missing, corrupt, or holds something else.
    """
    content = read_file(path, allow=_data_classes())
    meta = dict(content.get('meta') or {})
    cfg = Config(meta.pop('config', None))
    if meta.keys() != Step.__dataclass_fields__.keys():
        raise UserError(
            f'{path} holds no training step: name a file that a training left when its loss was not '
            'finite, as work_dirs/NAME/non_finite_iter_120.pth.'
        )
    return Step(**meta), content['state_dict'], cfg


def replay_step(path: str | Path) -> tuple[Step, Trace]:
    """Repeat a step from its file, on the device at hand.

    Raises:
        UserError: The file cannot be read, or the framework of its config is not installed.
    """
    step, weights, cfg = read_step(path)
    check_framework(cfg, path)
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(cfg.model)
    model.load_state_dict(weights)
    model.to(get_device()).train()
    if any(hook['type'] == 'swinv2_mm.Float32BoxesHook' for hook in cfg.get('custom_hooks') or ()):
        keep_boxes_in_float32(model)
    return step, step.repeat(model)


def _data_classes() -> list[object]:
    """The classes in batches of mmengine, mmdet and mmseg; each holds data and runs no code when it is read."""
    kinds = ('bool', 'u1', 'u2', 'i4', 'i8', 'f2', 'f4', 'f8')
    classes = [BaseDataElement, InstanceData, PixelData, *of_numpy(*kinds), bytes]  # empty arrays name the last
    with suppress(ImportError, AssertionError):
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import HorizontalBoxes
        from mmdet.structures.mask import BitmapMasks, PolygonMasks

        classes += [DetDataSample, HorizontalBoxes, BitmapMasks, PolygonMasks]
    with suppress(ImportError, AssertionError):
        from mmseg.structures import SegDataSample

        classes += [SegDataSample]
    return classes
