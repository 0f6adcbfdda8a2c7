"""What a model found in a picture, as data: boxes, masks as COCO's run lengths, maps of class indices."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from swinv2_mm.errors import UserError

VOID = 255  # a pixel of no class in a map; 65535 in maps of more classes


@dataclass
class Found:
    """What was found in a picture.

    Attributes:
        height, width: Of the picture, as it was loaded.
        boxes: Corners ``x1, y1, x2, y2`` in pixels, float32, ``(N, 4)``.
        scores: ``(N,)``.
        labels: Class indices, ``(N,)``.
        masks: A compressed run-length mask for each box; None from a detector without.
        map: Class indices, uint8 or uint16, ``(height, width)``; None from a detector.
    """

    height: int
    width: int
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    masks: list[dict] | None = None
    map: np.ndarray | None = None

    def records(self) -> list[dict[str, Any]]:
        """The objects as JSON holds them, the best first: label, score, ``[x, y, width, height]`` and the mask."""
        records = []
        for index in np.argsort(-self.scores, kind='stable'):
            x1, y1, x2, y2 = (round(float(value), 2) for value in self.boxes[index])
            record: dict[str, Any] = {'label': int(self.labels[index]), 'score': round(float(self.scores[index]), 4)}
            record['bbox'] = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
            if self.masks is not None:
                record['segmentation'] = self.masks[index]
            records.append(record)
        return records

    def pixels(self, classes: int) -> dict[str, int]:
        """How many pixels of the map each class has, by its index; classes without any are left out."""
        if self.map is None:
            return {}
        counts = np.bincount(self.map.ravel(), minlength=classes)[:classes]
        return {str(label): int(count) for label, count in enumerate(counts) if count}


def found_in(sample: Any, task: str, score_thr: float, classes: int) -> Found:
    """What a data sample of MMDetection or MMSegmentation says.

    Args:
        sample: Its predictions are of the size of the picture.
        task: ``'detection'``, ``'instance'``, ``'panoptic'`` or ``'semantic'``.
        score_thr: Objects below it are left out.
        classes: How many there are.

    Raises:
        UserError: The model has more classes than there are names, or its numbers are not finite.
    """
    height, width = sample.ori_shape[:2]
    if task == 'semantic':
        check_finite(sample.seg_logits.data)
        return Found(height, width, map=class_map(numpy(sample.pred_sem_seg.data)[0], classes))
    if task == 'panoptic':
        return _segments(numpy(sample.pred_panoptic_seg.sem_seg)[0], classes)
    instances = sample.pred_instances
    check_finite(instances.scores)
    instances = instances[instances.scores >= score_thr]
    boxes = numpy(getattr(instances.bboxes, 'tensor', instances.bboxes)).astype(np.float32)
    labels = numpy(instances.labels).astype(np.int64)
    _check_labels(labels, classes)
    masks = None
    if 'masks' in instances:
        masks = [encode(mask) for mask in numpy(instances.masks)]
        boxes = _boxes_of(masks, boxes)
    return Found(height, width, boxes, numpy(instances.scores).astype(np.float32), labels, masks)


def numpy(value: Any) -> np.ndarray:
    """A tensor of any device and type as an array, half precision as float32."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def class_map(labels: np.ndarray, classes: int) -> np.ndarray:
    """A map of class indices in the smallest type that has room for them and for :data:`VOID`."""
    if classes > VOID:
        return np.where(labels < classes, labels, 65535).astype(np.uint16)
    return np.where(labels < classes, labels, VOID).astype(np.uint8)


def _segments(ids: np.ndarray, classes: int) -> Found:
    """The segments of a panoptic map of MMDetection, ``label + 1000 * number`` a pixel; they have no score."""
    from mmdet.evaluation import INSTANCE_OFFSET

    labels = ids % INSTANCE_OFFSET
    kept = [number for number in np.unique(ids) if number % INSTANCE_OFFSET < classes]
    masks = [encode(ids == number) for number in kept]
    boxes = _boxes_of(masks, np.zeros((len(kept), 4), np.float32))
    of_segments = np.array(kept, np.int64) % INSTANCE_OFFSET
    return Found(*ids.shape, boxes, np.ones(len(kept), np.float32), of_segments, masks, class_map(labels, classes))


def _boxes_of(masks: list[dict], boxes: np.ndarray) -> np.ndarray:
    """Boxes around masks in the place of those without area, which heads without boxes give."""
    from pycocotools.mask import toBbox

    boxes = boxes.copy()
    for index, mask in enumerate(masks):
        if (boxes[index, 2:] <= boxes[index, :2]).any():
            x, y, width, height = toBbox(packed(mask))
            boxes[index] = x, y, x + width, y + height
    return boxes


def check_finite(values: Tensor) -> None:
    """Raise a UserError for NaN, which no threshold lets through, and which is some class in a map."""
    if not values.isfinite().all():
        raise UserError('the model predicts NaN or infinity. If --amp fp16 is on, pass --amp bf16 or leave it out.')


def _check_labels(labels: np.ndarray, classes: int) -> None:
    if labels.size and labels.max() >= classes:
        raise UserError(
            f'the model found class {labels.max()}, counted from 0, and there are {classes} names of classes: those '
            'in the checkpoint or in test_dataloader.dataset.metainfo are not those of its head.'
        )


def encode(mask: np.ndarray, x: int = 0, y: int = 0, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """Encode a mask as COCO does, without the picture around it.

    Args:
        mask: bool or 0 and 1, ``(h, w)``.
        x, y: The place of its first pixel in the picture.
        size: ``(height, width)`` of the picture; None if the mask is as large.

    Returns:
        ``{'size': [height, width], 'counts': text}``.
    """
    from pycocotools.mask import frPyObjects

    height, width = size or mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        edges = np.zeros(0, np.int64)
    else:
        inner = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].T.astype(np.int8)  # COCO counts down columns
        steps = np.diff(np.pad(inner, ((0, 0), (1, 1))), axis=1)
        column, row = np.nonzero(steps)  # starts and ends of runs in turns
        edges = (column + columns[0] + x) * height + row + rows[0] + y
        same = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run that goes on in the next column
        edges = np.delete(edges, np.concatenate([2 * same + 1, 2 * same + 2]))
    counts = np.diff(np.concatenate([[0], edges, [height * width]]))
    counts = counts[: len(counts) - (edges.size > 0 and counts[-1] == 0)]
    coded = frPyObjects({'size': [height, width], 'counts': counts.tolist()}, height, width)
    return {'size': [int(height), int(width)], 'counts': coded['counts'].decode()}


def packed(mask: dict[str, Any]) -> dict[str, Any]:
    """A run-length mask of JSON as pycocotools takes it."""
    return {'size': mask['size'], 'counts': mask['counts'].encode()}


def decode(mask: dict[str, Any]) -> np.ndarray:
    """The pixels of a run-length mask, bool, ``(height, width)``."""
    from pycocotools.mask import decode as decode_packed

    return decode_packed(packed(mask)).astype(bool)
