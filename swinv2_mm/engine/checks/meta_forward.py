"""Running the heads of a model on the meta device: shapes are computed, and neither values nor memory are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]

# Of a two-stage detector; everything in its RoI heads is linear in them, so that any number can be counted.
ROIS = 100


def forward_on_meta(model: nn.Module, size: Pair) -> None:
    """Run the heads of a model on the meta device on empty maps; its backbone and its proposals are lost."""
    backbone = model.backbone
    maps = tuple(
        torch.empty(1, backbone.num_features[i], *backbone.windows_on(size)[i][0], device='meta')
        for i in backbone.out_indices
    )
    backbone.forward = lambda image: maps
    if hasattr(model, 'roi_head'):
        _fix_rois(model)
    sample = BaseDataElement(
        metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    )
    image = torch.empty(1, 3, *size, device='meta')
    with torch.no_grad(), _KnownShapes():
        if hasattr(model, 'encode_decode'):  # its mode='tensor' fails with heads that want to know the image
            model.encode_decode(image, [sample.metainfo])
        else:
            model(image, [sample], mode='tensor')


def _fix_rois(model: nn.Module) -> None:
    """Replace what depends on pixels in a two-stage detector: which regions are proposed, and their features."""
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor

    proposals = [InstanceData(bboxes=torch.empty(ROIS, 4, device='meta'))]

    def propose(maps: Sequence[Tensor], *args: Any, **kwargs: Any) -> list[InstanceData]:
        model.rpn_head(maps)
        return proposals

    model.rpn_head.predict = propose
    for extractor in model.modules():
        if isinstance(extractor, BaseRoIExtractor):
            shape = extractor.out_channels, *extractor.roi_layers[0].output_size
            extractor.forward = lambda maps, rois, *args, shape=shape: maps[0].new_empty(len(rois), *shape)


class _KnownShapes(TorchFunctionMode):
    """Shapes that a head puts into tensors keep their values: they stay on the CPU until they meet a map.

    Sampling, which is not counted, is left out: to derive its shape takes longer than all the rest.
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
