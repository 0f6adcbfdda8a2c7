"""Annotations of a picture as a browser draws them over it: boxes, outlines of masks, and a coloured map."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_SIDE = 640  # the most pixels of a picture, in either direction
_QUALITY = 80


def objects_of(info: dict, height: int, width: int) -> tuple[list[dict], list[str]]:
    """The objects of a sample.

    Args:
        info: As an mmengine data set lists it, with ``instances``.
        height: Of the image, in pixels; masks are for this size.
        width: The same.

    Returns:
        A dict per object, with a label ``c``, and where it has them the box ``b`` (x1, y1, x2, y2), the outline ``p``
        as SVG path data, both in pixels, and ``i=1`` if it is ignored, such as a crowd. Then what is wrong with some.
    """
    found, faults = [], []
    for number, instance in enumerate(info.get('instances') or (), 1):
        entry: dict[str, Any] = {'c': int(instance.get('bbox_label', -1))}
        box = np.asarray(instance.get('bbox', ()), dtype=float).ravel()
        if box.size == 4 and np.isfinite(box).all():
            entry['b'] = box.round(1).tolist()
        elif box.size:
            faults.append(f'the box of object {number} is {box.tolist()}')
        mask = instance.get('mask')
        if mask is not None and len(mask):
            try:
                entry['p'] = outline(mask, height, width)
            except Exception as error:  # whatever a wrong mask causes in NumPy and pycocotools
                faults.append(f'the mask of object {number} cannot be read ({error})')
        if instance.get('ignore_flag'):
            entry['i'] = 1
        found.append(entry)
    return found, faults


def outline(mask: Any, height: int, width: int) -> str:
    """SVG path data of polygons, or of a mask as COCO's run lengths."""
    if isinstance(mask, dict):
        polygons = list(_contours(_decode(mask, height, width)))
    else:
        polygons = [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in mask]
    if not all(np.isfinite(polygon).all() for polygon in polygons):
        raise ValueError('a corner is not a finite number')
    return ''.join(
        f'M{"L".join(f"{x:g},{y:g}" for x, y in polygon.round(1).tolist())}Z' for polygon in polygons if len(polygon)
    )


def _decode(mask: dict, height: int, width: int) -> np.ndarray:
    from pycocotools import mask as coco

    if isinstance(mask['counts'], list):
        mask = coco.frPyObjects(mask, height, width)
    decoded = coco.decode(mask)
    if decoded.shape != (height, width):
        raise ValueError(f'it is for {decoded.shape[1]} x {decoded.shape[0]} pixels')
    return decoded


def _contours(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The outlines of a binary mask and of its holes, at the corners of its pixels."""
    import cv2

    large = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    precision = max(1.0, max(mask.shape) / _SIDE)
    for contour in contours:
        yield (cv2.approxPolyDP(contour, precision, True)[:, 0] + 0.5) / 2


def jpeg(picture: np.ndarray) -> str:
    """An RGB picture, ``(H, W, 3)``, scaled to a page, as a URL that contains it."""
    import cv2

    scale = min(1.0, _SIDE / max(picture.shape[:2]))
    if scale < 1:
        picture = cv2.resize(picture, _scaled(picture, scale), interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode('.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f'data:image/jpeg;base64,{b64encode(data).decode()}'


def overlay(labels: np.ndarray, colours: Sequence[Sequence[int]]) -> str:
    """A semantic map, ``(H, W)``, in colours, transparent where a label has none, as a URL that contains it."""
    import cv2

    scale = min(1.0, _SIDE / max(labels.shape))
    # Labels have at most 16 bits: OpenCV does not resize other integers.
    small = cv2.resize(labels.astype(np.uint16), _scaled(labels, scale), interpolation=cv2.INTER_NEAREST)
    table = np.zeros((65536, 4), np.uint8)
    table[: len(colours), :3] = np.asarray(colours, np.uint8)[:, ::-1]
    table[: len(colours), 3] = 255
    _, data = cv2.imencode('.png', table[small])
    return f'data:image/png;base64,{b64encode(data).decode()}'


def _scaled(array: np.ndarray, scale: float) -> tuple[int, int]:
    height, width = array.shape[:2]
    return max(1, round(width * scale)), max(1, round(height * scale))


def shares_of(labels: np.ndarray, number: int) -> list[list[float]]:
    """Which of the first labels a map has, and on which share of its pixels, the largest first."""
    found, counts = np.unique(labels, return_counts=True)
    shares = [
        [int(label), count / labels.size] for label, count in zip(found, counts, strict=True) if 0 <= label < number
    ]
    return sorted(shares, key=lambda share: -share[1])
