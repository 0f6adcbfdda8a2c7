"""Write masks as COCO annotations, without losing a pixel."""

from typing import Any

import cv2
import numpy as np
from numpy import ndarray

from swinv2_mm.datasets.drawing import Instance


def annotation(instance: Instance, number: int, image: int) -> dict[str, Any]:
    """An entry of COCO's ``annotations``, of the image with this id. COCOeval takes the number 0 for "unmatched"."""
    return {
        'id': number,
        'image_id': image,
        'category_id': instance.label + 1,
        'iscrowd': 0,
        'area': float(instance.mask.sum()),
        'bbox': bounding_box(instance.mask),
        'segmentation': segmentation(instance.mask),
    }


def bounding_box(mask: ndarray) -> list[float]:
    """A mask's bounding box, ``[x, y, width, height]`` in pixels."""
    return [float(value) for value in cv2.boundingRect(mask.astype(np.uint8))]


def segmentation(mask: ndarray) -> list[list[float]] | dict[str, Any]:
    """A mask as polygons, or as run lengths if it has a hole; pycocotools decodes both to the very same mask.

    The polygons follow the sides of the pixels, whereas those of ``cv2.findContours`` run through their centres.
    Coordinates are floats because MMDetection scales polygons in place, which would round integers down.
    """
    # In a mask enlarged twice, each pixel on the contour tells which corner of the original pixel it lies at.
    twice = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():  # a contour with a parent is a hole
        return _run_lengths(mask)
    polygons = []
    for contour in contours:
        corners = (contour[:, 0] + 1) // 2
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
        back, ahead = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
        turns = back[:, 0] * ahead[:, 1] != back[:, 1] * ahead[:, 0]
        polygons.append(corners[turns].ravel().astype(float).tolist())
    return polygons


def _run_lengths(mask: ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, alternately outside and inside, outside first.

    ``pycocotools.mask.encode`` writes only the compressed form, which is bytes and does not fit into JSON.
    """
    flat = mask.ravel(order='F')
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {'size': list(mask.shape), 'counts': [0] + counts if flat[0] else counts}
