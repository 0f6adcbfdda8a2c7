"""Average precision of each class, by pycocotools, from pictures that were matched one by one."""

from collections.abc import Iterable
from contextlib import redirect_stdout
from io import StringIO

import numpy as np

_KEPT = ('dtMatches', 'dtIgnore', 'dtScores', 'gtIgnore')  # what COCOeval.accumulate reads


def compact(results: dict[int, dict]) -> dict[int, dict]:
    """What the average precision needs of the results of a picture, in a tenth of the memory."""
    types = dict(zip(_KEPT, (bool, bool, np.float32, bool), strict=True))
    return {label: {key: np.asarray(result[key], types[key]) for key in _KEPT} for label, result in results.items()}


def average_precision(pictures: Iterable[dict[int, dict]], classes: int) -> np.ndarray:
    """AP over IoUs of 0.5 to 0.95, and AP at 0.5, of each class.

    Args:
        pictures: For each, the results of :func:`~swinv2_mm.engine.display.mistakes.matching.evaluated` by class.
        classes: Their number.

    Returns:
        ``(classes, 2)``; NaN for classes without an object.
    """
    values = np.full((classes, 2), np.nan)
    for label, results in _by_class(pictures).items():
        precision = _accumulated(results)
        if 0 <= label < classes and (precision > -1).any():
            values[label] = precision[precision > -1].mean(), precision[0].mean()
    return values


def _by_class(pictures: Iterable[dict[int, dict]]) -> dict[int, list[dict]]:
    of_class: dict[int, list[dict]] = {}
    for results in pictures:
        for label, result in results.items():
            of_class.setdefault(label, []).append(result)
    return of_class


def _accumulated(results: list[dict]) -> np.ndarray:
    """Precision at 10 IoUs and 101 recalls, ``(10, 101)``; -1 without an object."""
    from pycocotools.cocoeval import COCOeval

    coco = COCOeval(iouType='bbox')
    coco.params.catIds, coco.params.imgIds = [0], list(range(len(results)))
    coco.params.areaRng, coco.params.maxDets = [[0, 1e10]], [100]
    coco.evalImgs, coco._paramsEval = results, coco.params
    with redirect_stdout(StringIO()):  # it tells the time that it took
        coco.accumulate()
    return coco.eval['precision'][:, :, 0, 0, 0]


def best_threshold(pictures: Iterable[dict[int, dict]]) -> tuple[float, float, float, float] | None:
    """The score from which on detections are right, or miss, the least, over all classes at an IoU of 0.5.

    Returns:
        The score, and F1, precision and recall with it; None without a right detection.
    """
    results = [result for picture in pictures for result in picture.values()]
    if not results:
        return None
    scores = np.concatenate([result['dtScores'] for result in results])
    counts = ~np.concatenate([result['dtIgnore'][0] for result in results])
    right = np.concatenate([result['dtMatches'][0] for result in results]) & counts
    objects = sum(int((~result['gtIgnore']).sum()) for result in results)
    if not right.any():
        return None
    order = np.argsort(-scores, kind='stable')
    found, given = right[order].cumsum(), counts[order].cumsum()
    f1 = 2 * found / np.maximum(given + objects, 1)
    last = np.append(scores[order][1:] != scores[order][:-1], True)  # of those with the same score
    best = int(np.where(last, f1, -1).argmax())
    return scores[order][best], f1[best], found[best] / given[best], found[best] / objects
