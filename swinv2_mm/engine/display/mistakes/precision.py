"""Average precision of each class, by pycocotools, from pictures that were matched one by one."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO

import numpy as np

# Of each detection and each annotation of a picture: their names here, those of COCOeval.evaluateImg, and the type.
_ARRAYS = {
    'scores': ('dtScores', np.float32),
    'matches': ('dtMatches', bool),
    'ignored': ('dtIgnore', bool),
    'crowds': ('gtIgnore', bool),
}


def compact(results: dict[int, dict]) -> dict[str, np.ndarray]:
    """What the average precision needs of a picture: some bytes for each detection and each annotation.

    Args:
        results: By class, see :func:`~swinv2_mm.engine.display.mistakes.matching.evaluated`.

    Returns:
        Of the D detections ``labels`` and ``scores`` (D,), and at 10 IoUs ``matches`` and ``ignored`` (10, D); of the G
        annotations ``truth``, their labels, and ``crowds``, (G,).
    """
    arrays = {
        name: np.concatenate(
            [np.zeros((10, 0) if name in ('matches', 'ignored') else 0, kind)]
            + [np.asarray(result[key], kind) for result in results.values()],
            axis=-1,
        )
        for name, (key, kind) in _ARRAYS.items()
    }
    for name, key in (('labels', 'dtScores'), ('truth', 'gtIgnore')):
        arrays[name] = np.repeat(np.array([*results], np.int32), [len(result[key]) for result in results.values()])
    return arrays


def joined(pictures: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of all pictures, one after the other."""
    pictures = [compact({}), *pictures]
    return {name: np.concatenate([picture[name] for picture in pictures], axis=-1) for name in pictures[0]}


def average_precision(arrays: dict[str, np.ndarray], classes: int) -> np.ndarray:
    """AP over IoUs of 0.5 to 0.95, and AP at 0.5, of each class.

    Args:
        arrays: Of :func:`joined`.
        classes: Their number.

    Returns:
        ``(classes, 2)``; NaN for classes without an object.
    """
    values = np.full((classes, 2), np.nan)
    for label in np.unique(arrays['truth'][~arrays['crowds']]).tolist():
        precision = _precision(arrays, label)
        values[label] = precision.mean(), precision[0].mean()
    return values


def _precision(arrays: dict[str, np.ndarray], label: int) -> np.ndarray:
    """Precision of a class at 10 IoUs and 101 recalls, ``(10, 101)``."""
    from pycocotools.cocoeval import COCOeval

    found = arrays['labels'] == label
    result = {key: arrays[name][..., found] for name, (key, _) in _ARRAYS.items() if name != 'crowds'}
    result['gtIgnore'] = arrays['crowds'][arrays['truth'] == label]
    coco = COCOeval(iouType='bbox')
    coco.params.catIds, coco.params.imgIds, coco.params.areaRng = [0], [0], [[0, 1e10]]
    coco.params.maxDets = [len(arrays['labels'])]  # evaluateImg has left out those beyond the limit of a picture
    coco.evalImgs, coco._paramsEval = [result], coco.params
    with redirect_stdout(StringIO()):  # it tells the time that it took
        coco.accumulate()
    return coco.eval['precision'][:, :, 0, 0, 0]


def best_threshold(arrays: dict[str, np.ndarray]) -> tuple[float, float, float, float] | None:
    """The score from which on F1 is the largest, over all classes at an IoU of 0.5.

    Returns:
        The score, and F1, precision and recall with it; None without a right detection.
    """
    scores, counts = arrays['scores'], ~arrays['ignored'][0]
    right = arrays['matches'][0] & counts
    objects = int((~arrays['crowds']).sum())
    if not right.any():
        return None
    order = np.argsort(-scores, kind='stable')
    found, given = right[order].cumsum(), counts[order].cumsum()
    f1 = 2 * found / np.maximum(given + objects, 1)
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of those with the same score
    best = int(np.where(last, f1, -1).argmax())
    return scores[order][best], f1[best], found[best] / given[best], found[best] / objects
