"""Predict on large pictures in tiles that overlap: detections are merged, logits are blended."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swinv2_mm.inference.found import Found, check_finite, class_map, decode, encode, found_in
from swinv2_mm.inference.model import Model, cut

_SAME = 0.5  # boxes of one object in two tiles: intersection over union
_PART = 0.5  # a box that the border of a tile has cut, and another one: intersection over the former
_NEAR = 0.01  # of the tile: a box that ends so near to a border is cut by it


def starts(length: int, tile: int, overlap: float) -> list[int]:
    """The first pixels of the fewest tiles that cover ``length`` pixels; each overlaps the next by this share or more.

    Tiles are evenly spaced, and none is smaller than the others.
    """
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // max(1, int(tile * (1 - overlap))))  # rounded up
    return [round(index * (length - tile) / steps) for index in range(steps + 1)]


def predict_in_tiles(
    model: Model, loaded: dict[str, Any], tile: int, overlap: float, batch_size: int, score_thr: float
) -> Found:
    """Predict on what :meth:`Model.load` returned, in tiles of ``tile`` x ``tile`` pixels.

    MMSegmentation's slide mode would do for small pictures: it keeps the logits of all classes for all pixels, and
    weighs the border of a tile as its middle.

    Args:
        overlap: The share of a tile that the next one sees again, from 0 to 0.5.
        batch_size: How many tiles are computed at once.
        score_thr: As of :func:`~swinv2_mm.inference.found.found_in`.
    """
    height, width = loaded['img'].shape[:2]
    tops, lefts = starts(height, tile, overlap), starts(width, tile, overlap)
    size = min(tile, height), min(tile, width)
    if model.task == 'semantic':
        labels = _blended(model, loaded, (tops, lefts), size, batch_size)
        return Found(height, width, map=class_map(labels.numpy(), len(model.classes)))
    corners = [(top, left) for top in tops for left in lefts]
    samples = _samples(model, loaded, corners, size, batch_size)
    parts = [found_in(sample, model.task, score_thr, len(model.classes)) for sample in samples]
    return merged(parts, corners, (height, width))


def _samples(
    model: Model, loaded: dict[str, Any], corners: Sequence[tuple[int, int]], size: tuple[int, int], batch_size: int
) -> Iterator[Any]:
    for begin in range(0, len(corners), batch_size):
        cuts = [
            cut(loaded, loaded['img'][top : top + size[0], left : left + size[1]])
            for top, left in corners[begin : begin + batch_size]
        ]
        yield from model.predict([model.prepare(each) for each in cuts])


def merged(parts: Sequence[Found], corners: Sequence[tuple[int, int]], size: tuple[int, int]) -> Found:
    """Merge what was found in tiles, class by class; an object in two of them is kept once.

    Plain NMS keeps the box with the higher score, which may be that of a part of the object, and a part overlaps the
    whole too little to be suppressed by IoU. So boxes that an inner border has cut come after all others, the largest
    first, and one is left out if a box of another tile covers half of it (sahi's "intersection over smaller"). Boxes of
    one tile do not suppress each other: the model has done that. To merge cut boxes into larger ones, as sahi also can,
    would make one object of two that stand side by side. One that is larger than the overlap may stay in parts.

    Args:
        parts: One for each tile.
        corners: Top and left of each tile.
        size: Height and width of the picture.
    """
    number = np.concatenate([np.full(len(part.boxes), index) for index, part in enumerate(parts)]).astype(int)
    boxes = np.concatenate([part.boxes + [left, top] * 2 for part, (top, left) in zip(parts, corners, strict=True)])
    scores, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ('scores', 'labels'))
    is_cut = np.concatenate([_is_cut(part, *corner, size) for part, corner in zip(parts, corners, strict=True)])
    places = np.concatenate([np.arange(len(part.boxes)) for part in parts]).astype(int)
    kept: list[int] = []
    sizes = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for index in np.lexsort((np.where(is_cut, -sizes, -scores), is_cut)):
        others = [other for other in kept if labels[other] == labels[index] and number[other] != number[index]]
        shared, own, their = _areas(boxes[index], boxes[others])
        same = shared >= _PART * own if is_cut[index] else shared >= _SAME * (own + their - shared)
        if not same.any():
            kept.append(int(index))
    masks = None
    if any(part.masks is not None for part in parts):
        masks = []
        for index in kept:
            top, left = corners[number[index]]
            masks.append(encode(decode(parts[number[index]].masks[places[index]]), left, top, size))
    return Found(*size, boxes[kept].astype(np.float32), scores[kept], labels[kept], masks)


def _is_cut(part: Found, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """Which boxes of a tile end at a border of it that is none of the picture; ``(N,)``."""
    x1, y1, x2, y2 = part.boxes.T
    near = max(1.0, _NEAR * max(part.height, part.width))
    is_cut = np.zeros(len(part.boxes), bool)
    is_cut |= (x1 < near) & (left > 0)
    is_cut |= (y1 < near) & (top > 0)
    is_cut |= (x2 > part.width - near) & (left + part.width < size[1])
    is_cut |= (y2 > part.height - near) & (top + part.height < size[0])
    return is_cut


def _areas(box: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float, np.ndarray]:
    """The areas that a box shares with others, ``(N,)``, its own, and theirs, ``(N,)``."""
    corners = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = (corners[1] - corners[0]).clip(0).prod(1)
    return shared, float((box[2:] - box[:2]).prod()), (others[:, 2:] - others[:, :2]).prod(1)


def _blended(
    model: Model, loaded: dict[str, Any], grid: tuple[list[int], list[int]], size: tuple[int, int], batch_size: int
) -> Tensor:
    """Class indices, ``(height, width)``, of logits that fade from each tile into the next.

    Logits are kept only where a later tile adds to them: of one row of tiles, the pixels that the next row sees, too.
    """
    height, width = loaded['img'].shape[:2]
    tops, lefts = grid
    rows, columns = _weights(tops, size[0], height), _weights(lefts, size[1], width)
    labels = torch.empty((height, width), dtype=torch.int32)
    above = None  # what the row above adds to this one, (C, rows, width)
    for row, (top, end) in enumerate(zip(tops, [*tops[1:], height], strict=True)):
        before, below = None, None  # what the tile to the left adds to this one; what this row adds to the next
        samples = _samples(model, loaded, [(top, left) for left in lefts], size, batch_size)
        for column, (left, stop, sample) in enumerate(zip(lefts, [*lefts[1:], width], samples, strict=True)):
            check_finite(sample.seg_logits.data)
            logits = sample.seg_logits.data.detach().float().cpu() * (rows[row][:, None] * columns[column])
            if before is not None:
                logits[:, :, : before.shape[2]] += before
            before, whole = logits[:, :, stop - left :].clone(), logits[:, :, : stop - left]
            if above is not None:
                whole[:, : above.shape[1]] += above[:, :, left:stop]
            if below is None:
                below = torch.empty(len(logits), top + size[0] - end, width)
            below[:, :, left:stop] = whole[:, end - top :]
            labels[top:end, left:stop] = _decided(whole[:, : end - top], model.model)
        above = below
    return labels


def _weights(begins: list[int], tile: int, length: int) -> list[Tensor]:
    """A weight for each pixel of each tile along one axis, which falls towards its ends; at each place the sum is 1."""
    ramp = torch.minimum(torch.arange(tile) + 0.5, tile - torch.arange(tile) - 0.5)
    total = torch.zeros(length)
    for begin in begins:
        total[begin : begin + tile] += ramp
    return [ramp / total[begin : begin + tile] for begin in begins]


def _decided(logits: Tensor, model: Any) -> Tensor:
    """The class of each pixel, as the segmentor would decide; with one channel these are probabilities."""
    return logits.argmax(0) if len(logits) > 1 else logits[0] > model.decode_head.threshold
