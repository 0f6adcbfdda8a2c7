"""Run the heads of a model on the meta device, which computes shapes without values or memory: channels, BatchNorm."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import SEE_MORE
from swinv2_mm.errors import UserError, listed
from swinv2_mm.models.swin_v2 import SwinTransformerV2

SIDE = 128  # of the image whose empty maps the heads get
# RoIs of a two-stage detector: the work of its RoI heads is linear in their number, so any number can be counted.
ROIS = 100
_TAKING = ('forward', '_transform_inputs', '<listcomp>')  # functions in which heads pick maps


def check_heads(cfg: Config, context: Context) -> None:
    """Hand empty maps from a SwinV2 backbone to the neck and the heads: are their channels and number right?"""
    model = context.model
    backbone: Any = getattr(model, 'backbone', None)
    ours = isinstance(backbone, SwinTransformerV2) and hasattr(model, 'extract_feat')
    if not ours or not next(model.parameters()).is_meta:
        return
    with _LastLayer() as last:
        try:
            forward_on_meta(model.eval(), (SIDE, SIDE))
        except Exception as error:
            mistake = _mistake(error, model, last.arguments)
            if mistake is None:
                return  # anybody's code, or an operation that needs values, which the meta device does not have
            channels = [backbone.num_features[i] for i in backbone.out_indices]
            raise UserError(
                f'{mistake} The backbone emits maps of {listed(channels)} channels '
                f'(out_indices={list(backbone.out_indices)}); set in_channels of what follows to that. {SEE_MORE}'
            ) from error


def _mistake(error: Exception, model: nn.Module, arguments: list) -> str | None:
    """Say which module does not take what it gets, if that is the error; the arguments are those of the last layer."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    for name, module in model.named_modules():
        if isinstance(error, RuntimeError) and type(module).__module__.startswith('torch.'):
            sizes = [getattr(module, size, None) for size in ('in_channels', 'in_features', 'num_features')]
            takes = next((size for size in sizes if isinstance(size, int)), None)
            if takes and any(weight is value for weight in module.parameters() for value in arguments):
                gets = arguments[0].shape[1 if arguments[0].ndim == 4 else -1]
                return None if gets == takes else f'model.{name} takes {takes} channels and gets {gets}.'
        elif isinstance(error, AssertionError | IndexError) and last.name in _TAKING:
            files = [getattr(sys.modules.get(base.__module__), '__file__', None) for base in type(module).__mro__]
            if name and last.filename in files:
                reason = str(error) or last.line
                return f'model.{name} ({type(module).__name__}) does not take the maps that it gets: {reason}.'
    return None


def norm_without_statistics(model: Any, size: tuple[int, int], processes: int) -> str | None:
    """The name of a BatchNorm that gets one value per channel from one image in training, which it refuses.

    Args:
        size: ``(rows, columns)`` of the image.
        processes: If there are several, a synchronized BatchNorm has more values.
    """
    if not isinstance(getattr(model, 'backbone', None), SwinTransformerV2) or not next(model.parameters()).is_meta:
        return None
    norms = {id(module): name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return None
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module in model.modules():
        if processes > 1 and 'Sync' in type(module).__name__:
            module.eval()
    try:
        forward_on_meta(model, size)
    except Exception as error:  # anybody's code, as above
        if isinstance(error, ValueError) and 'more than 1 value per channel' in str(error):
            own = (id(frame.f_locals.get('self')) for frame, _ in traceback.walk_tb(error.__traceback__))
            return next((norms[key] for key in own if key in norms), None)
    finally:
        for module, training in modes:
            module.training = training
    return None


def forward_on_meta(model: Any, size: tuple[int, int]) -> None:
    """Run the heads of a model on the meta device on the empty maps of one image.

    The auxiliary heads of a segmentor take part in training mode only. What stands for the backbone and the proposals
    is taken away again.
    """
    backbone = model.backbone
    maps = tuple(
        torch.empty(1, backbone.num_features[i], *backbone.windows_on(size)[i][0], device='meta')
        for i in backbone.out_indices
    )
    sample = BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    image = torch.empty(1, backbone.patch_embed.proj.in_channels, *size, device='meta')
    with torch.no_grad(), _KnownShapes(), ExitStack() as stack:
        _replace(stack, backbone, 'forward', lambda image, masked=None: maps)
        if hasattr(model, 'roi_head'):
            _fix_rois(model, stack)
        if hasattr(model, 'encode_decode'):  # its mode='tensor' fails with heads that want to know the image
            model.encode_decode(image, [sample.metainfo])
            others = getattr(model, 'auxiliary_head', None) if model.training else None
            for head in others if isinstance(others, nn.ModuleList) else filter(None, [others]):
                head(model.extract_feat(image))
        else:
            model(image, [sample], mode='tensor')


def _replace(stack: ExitStack, module: Any, name: str, method: Any) -> None:
    """Give one object another method until the stack is left."""
    vars(module)[name] = method
    stack.callback(vars(module).pop, name)


def _fix_rois(model: Any, stack: ExitStack) -> None:
    """Replace what depends on pixels in a two-stage detector: the proposals and the features of regions."""
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor

    proposals = [InstanceData(bboxes=torch.empty(ROIS, 4, device='meta'))]

    def propose(maps: Sequence[Tensor], *args: Any, **kwargs: Any) -> list[InstanceData]:
        model.rpn_head(maps)
        return proposals

    _replace(stack, model.rpn_head, 'predict', propose)
    extractors: list[Any] = [module for module in model.modules() if isinstance(module, BaseRoIExtractor)]
    for extractor in extractors:
        shape = extractor.out_channels, *extractor.roi_layers[0].output_size
        empty = lambda maps, rois, *args, shape=shape: maps[0].new_empty(len(rois), *shape)  # noqa: E731
        _replace(stack, extractor, 'forward', empty)


class _KnownShapes(TorchFunctionMode):
    """A dispatch mode in which tensors of shapes keep their values: they stay on the CPU until they meet a map.

    Sampling is not counted and left out: deriving its shape takes longer than all the rest.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.grid_sample:
            return args[0].new_empty(*args[0].shape[:2], *args[1].shape[1:3])
        if func is Tensor.to and any(isinstance(to, torch.device) and to.type == 'meta' for to in args):
            return args[0]
        if any(isinstance(value, Tensor) and value.is_meta for value in args):
            args = tuple(
                value.to('meta') if isinstance(value, Tensor) and value.ndim and not value.is_meta else value
                for value in args
            )
        return func(*args, **kwargs)


class _LastLayer(TorchFunctionMode):
    """Keeps the arguments of the last operation that has a parameter: after an error, of the one at fault."""

    arguments: list = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        arguments = [*args, *(kwargs or {}).values()]
        if any(isinstance(value, nn.Parameter) for value in arguments):
            self.arguments = arguments
        return func(*args, **(kwargs or {}))
