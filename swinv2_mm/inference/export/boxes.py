"""What a detector of two stages does with boxes, as operations that exporters see whole: NMS and RoIAlign.

Each has a fixed number of results, so that no size of a graph depends on what is in a picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from swinv2_mm.compat import custom_op

# The score of what is no candidate: probabilities are above LEAST.
REMOVED, LEAST = -1.0, -0.5


@custom_op('swinv2_mm::nms', '(Tensor boxes, Tensor scores, float iou, float least, int most) -> Tensor')
def nms(boxes: Tensor, scores: Tensor, iou: float, least: float, most: int) -> Tensor:
    """The indices of the boxes that non-maximum suppression keeps, best first; ``N`` in the rest.

    Args:
        boxes: ``(N, 4)``, x1, y1, x2, y2.
        scores: ``(N,)``.
        iou: A box is suppressed by a better one if they overlap by more.
        least: Boxes take part if their score is above it.
        most: How many to keep at most.

    Returns:
        ``(most,)``, int64.
    """
    from mmcv.ops import nms as suppress

    kept = (scores > least).nonzero()[:, 0]
    if len(kept):
        kept = kept[suppress(boxes[kept].contiguous(), scores[kept].contiguous(), iou)[1]]
    return torch.cat((kept, kept.new_full((most,), len(boxes))))[:most]


@nms.register_fake
def _(boxes, scores, iou, least, most):
    return boxes.new_empty(most, dtype=torch.int64)


@custom_op('swinv2_mm::roi_align', '(Tensor map, Tensor rois, int[] size, float scale, int sampling_ratio) -> Tensor')
def roi_align(map: Tensor, rois: Tensor, size: list[int], scale: float, sampling_ratio: int) -> Tensor:
    """mmcv's ``roi_align`` with ``aligned=True``: ``(1, C, H, W)`` and ``(K, 5)`` to ``(K, C, *size)``."""
    from mmcv.ops import roi_align as of_mmcv

    return of_mmcv(map.contiguous(), rois, tuple(size), scale, sampling_ratio, 'avg', True)


@roi_align.register_fake
def _(map, rois, size, scale, sampling_ratio):
    return map.new_empty(rois.shape[0], map.shape[1], *size)


def nms_per_group(boxes: Tensor, scores: Tensor, groups: Tensor, *limits: Any) -> tuple[Tensor, Tensor, Tensor]:
    """NMS within each group, as mmcv's ``batched_nms``: groups are moved apart.

    Args:
        boxes: ``(N, 4)``, none below 0.
        scores: ``(N,)``, :data:`REMOVED` for what is no candidate.
        groups: ``(N,)``, int64.
        limits: ``iou``, ``least`` and ``most`` of :func:`nms`.

    Returns:
        Boxes ``(most, 4)``, scores ``(most,)`` and groups ``(most,)``; the scores behind the last box are REMOVED.
    """
    apart = boxes + (groups.to(boxes) * (boxes.max() + 1))[:, None]
    kept = nms(apart, scores, *limits)
    boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))[kept]
    scores = torch.cat((scores, scores.new_full((1,), REMOVED)))[kept]
    return boxes, scores, torch.cat((groups, groups.new_zeros(1)))[kept]


def write_nms(op: Any) -> Any:
    """A function that writes :func:`nms` in operators of the ONNX standard; ``op`` are those of the opset."""

    def write(boxes, scores, iou, least, most):
        first, limit = op.Constant(value_ints=[0]), op.Constant(value_ints=[most])
        selected = op.NonMaxSuppression(
            op.Unsqueeze(boxes, first),
            op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
            limit,
            op.Constant(value_floats=[iou]),
            op.Constant(value_floats=[least]),
        )  # (kept, 3): image, class, box
        kept = op.Reshape(op.Gather(selected, op.Constant(value_int=2), axis=1), op.Constant(value_ints=[-1]))
        rest = op.Expand(op.Shape(scores), limit)
        return op.Slice(op.Concat(kept, rest, axis=0), first, limit, first)

    return write


def write_roi_align(op: Any) -> Any:
    """A function that writes :func:`roi_align`, as :func:`write_nms`."""

    def write(map, rois, size, scale, sampling_ratio):
        corners = op.Slice(rois, *(op.Constant(value_ints=[number]) for number in (1, 5, 1)))
        image = op.Cast(op.Gather(rois, op.Constant(value_int=0), axis=1), to=7)
        return op.RoiAlign(
            map,
            corners,
            image,
            coordinate_transformation_mode='half_pixel',
            mode='avg',
            output_height=size[0],
            output_width=size[1],
            sampling_ratio=sampling_ratio,
            spatial_scale=scale,
        )

    return write
