"""A training step of a config on the meta device: what it allocates, in which order, without memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, LabelData, PixelData
from torch import Tensor, nn

from swinv2_mm.engine.checks.lookup import with_key
from swinv2_mm.engine.checks.optimizer import build_optimizer
from swinv2_mm.engine.config.parts import nested
from swinv2_mm.engine.costs import check_backbone
from swinv2_mm.engine.costs.plan.answers import without_values
from swinv2_mm.engine.costs.plan.machine import Autocast, again_in_backward, as_on
from swinv2_mm.engine.costs.plan.memory import Moment, Tally
from swinv2_mm.engine.recipe.precision import keep_boxes_in_float32
from swinv2_mm.errors import UserError
from swinv2_mm.models.kernels.choose import has_arithmetic
from swinv2_mm.models.swin_v2 import SwinTransformerV2Block

Pair = tuple[int, int]


@dataclass(frozen=True)
class Work:
    """What a process does in a step."""

    shape: Pair  # of the images, in pixels
    batch: int  # images
    objects: int = 20  # in an image, of detectors; labels in it, of segmentors with masks
    device: str = 'cuda'  # or 'cpu': whose path the model takes
    dtype: torch.dtype | None = None  # of autocast, None for none


@dataclass(frozen=True)
class Weight:
    """A parameter."""

    name: str
    shape: tuple[int, ...]
    bytes: int
    trained: bool
    group: int | None  # of the optimizer
    state: int  # bytes of the optimizer's state
    unit: int | None  # the block of the backbone that it belongs to, for FSDP2


@dataclass(frozen=True)
class Step:
    """A training step as one process without others would do it; in bytes."""

    weights: tuple[Weight, ...]
    buffers: int
    peak: int  # of what forward and backward passes allocate, gradients of parameters included
    peak_gradients: int  # of these, gradients of parameters
    update: int  # what the optimizer allocates for a moment
    fullest: Mapping[Moment, int]  # see Tally


def trace(cfg: Config, work: Work) -> Step:
    """Run one training step of a config on tensors without memory.

    Args:
        cfg: Of a training; its model, its optimizer.

    Raises:
        UserError: The backbone is not ours, or the step needs values that nobody can know.
    """
    scope = cfg.get('default_scope') or 'mmengine'
    slow = work.device == 'cpu' and work.dtype is not None and not has_arithmetic(work.dtype)
    autocast = Autocast(None if slow else work.dtype, work.device)  # such a processor trains in float32
    with _quiet(), DefaultScope.overwrite_default_scope(scope):
        model = build(cfg)
        wrapper = build_optimizer(deepcopy(cfg.optim_wrapper), model)
        if wrapper is None:
            raise UserError('optim_wrapper: a constructor that builds several optimizers cannot be planned.')
        units = [module for module in model.modules() if isinstance(module, SwinTransformerV2Block)]
        tally = Tally(units)
        tally.leave_out(model)
        if work.dtype is not None:
            keep_boxes_in_float32(model)
        again_in_backward(units, autocast)
        with as_on(work.device, autocast), without_values(work.device, work.objects), tally:
            with _blamed(model):
                _forward_and_backward(model, cfg, work, autocast)
                if cfg.optim_wrapper.get('accumulative_counts', 1) > 1:  # later batches meet the first one's gradients
                    tally.start()
                    _forward_and_backward(model, cfg, work, autocast)
            found = tally.peak, tally.peak_gradients, dict(tally.fullest)
            update = _update(wrapper, tally, work.device)
    return Step(_weights(model, units, wrapper), _buffers(model), found[0], found[1], update, found[2])


@contextmanager
def _blamed(model: nn.Module) -> Iterator[None]:
    """Say which model cannot be planned: its heads are anybody's code, and may ask for values in any way."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f'the training step of {type(model).__name__} cannot run without the values of tensors, so it cannot be '
            f'planned: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else "no reason given"}. '
            'SWINV2_MM_TRACEBACK=1 shows where.'
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what frameworks log and warn of when they build something."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def build(cfg: Config) -> nn.Module:
    """Build the model of a config without memory, to be trained."""
    check_backbone(cfg.model)
    model = deepcopy(cfg.model)
    for place, part in nested(model, 'model'):
        if isinstance(part, dict) and part.get('init_cfg') is not None and place.endswith('.backbone'):
            part['init_cfg'] = None
    with with_key(cfg.model, 'model'), torch.device('meta'):
        built = MODELS.build(model)
    return revert_sync_batchnorm(built).to('meta').train()  # statistics of several processes take no memory


def _forward_and_backward(model: Any, cfg: Config, work: Work, autocast: Autocast) -> None:
    dtype = next(model.parameters()).dtype
    images = torch.empty(work.batch, _channels(model), *work.shape, dtype=dtype, device='meta')
    samples = [_sample(cfg, work) for _ in range(work.batch)]
    with autocast, torch.device('meta'):
        losses = model(images, samples, mode='loss')
        loss, _ = model.parse_losses(losses)
        autocast.forget()
        del losses
        loss.backward()
        autocast.forget()


def _update(wrapper: Any, tally: Tally, device: str) -> int:
    """Step twice, and return what the second takes beside the state that the first has made."""
    for group in wrapper.optimizer.param_groups:
        if device == 'cuda' and 'foreach' in group and group['foreach'] is None and not group.get('fused'):
            group['foreach'] = True  # torch's default on a GPU
    wrapper.step()
    tally.start()
    before = tally.bytes
    wrapper.step()
    return tally.peak - before


def _weights(model: nn.Module, units: list, wrapper: Any) -> tuple[Weight, ...]:
    unit_of = {id(p): index for index, unit in enumerate(units) for p in unit.parameters()}
    optimizer = wrapper.optimizer
    state = optimizer.state
    group_of = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group['params']}
    return tuple(
        Weight(
            name,
            tuple(p.shape),
            p.nbytes,
            p.requires_grad,
            group_of.get(id(p)),
            sum(value.nbytes for value in state.get(p, {}).values() if isinstance(value, Tensor) and value.ndim),
            unit_of.get(id(p)),
        )
        for name, p in model.named_parameters()
    )


def _buffers(model: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in model.buffers())


def _channels(model: Any) -> int:
    return model.backbone.patch_embed.proj.in_channels


def _sample(cfg: Config, work: Work) -> Any:
    """What the data set tells about an image, as large as it would be."""
    H, W = work.shape
    meta = dict(
        img_shape=(H, W),
        ori_shape=(H, W),
        pad_shape=(H, W),
        batch_input_shape=(H, W),
        scale_factor=(1.0, 1.0),
        flip=False,
        img_id=0,
    )
    scope = cfg.get('default_scope')
    whole = PixelData(data=torch.empty(1, *_map_size(cfg, work.shape), dtype=torch.int64, device='meta'))
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks

        sample = DetDataSample(metainfo=meta)
        n = work.objects
        sample.gt_instances = InstanceData(
            bboxes=torch.empty(n, 4, device='meta'),
            labels=torch.empty(n, dtype=torch.int64, device='meta'),
            masks=BitmapMasks(np.zeros((n, H, W), np.uint8), H, W),
        )
        sample.ignored_instances = InstanceData(
            bboxes=torch.empty(0, 4, device='meta'), labels=torch.empty(0, dtype=torch.int64, device='meta')
        )
        sample.gt_sem_seg = PixelData(sem_seg=whole.data)
    elif scope == 'mmseg':
        from mmseg.structures import SegDataSample

        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = whole
    elif scope == 'mmpretrain':
        from mmpretrain.structures import DataSample

        sample = DataSample(metainfo=meta)
        sample.set_gt_label(torch.zeros(1, dtype=torch.int64))
    else:
        sample = LabelData(metainfo=meta)
    return sample


def _map_size(cfg: Config, shape: Pair) -> Pair:
    """Rows and columns of a semantic map, which HTC's pipeline shrinks."""
    for _, part in nested(cfg.get('train_dataloader'), ''):
        if isinstance(part, dict) and str(part.get('type')).split('.')[-1] == 'SegRescale':
            return tuple(round(side * part.get('scale_factor', 1)) for side in shape)  # type: ignore[return-value]
    return shape
