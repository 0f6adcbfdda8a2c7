"""Which detections found which objects, and what is wrong with the others.

Detections are matched as COCO does, by pycocotools: per class, the best score first, each to the object that it
overlaps most. A detection that found none, and an object that was not found, are told apart by the rules of TIDE (Bolya
et al., 2020, section 2.2), with its thresholds, an IoU of 0.5 and of 0.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FOUND_IOU, NEAR_IOU = 0.5, 0.1
_MOST = 100  # detections of a class in a picture, as in COCO's metric

# Kinds of mistakes, in the order of the page, with the colour and the meaning of each.
KINDS = {
    'missed': ('rgb(30,120,230)', 'an object that no detection found, confused or overlapped'),
    'false': ('rgb(215,40,45)', f'a detection of nothing, or of a part (IoU below {FOUND_IOU}) of another class'),
    'confused': ('rgb(165,70,215)', f'right place, wrong class (IoU at least {FOUND_IOU})'),
    'poor overlap': ('rgb(225,135,0)', f'right class, IoU from {NEAR_IOU} to {FOUND_IOU}'),
    'double': ('rgb(120,95,80)', 'one more detection of an object that was found already'),
}
CORRECT = 'correct'
OUTCOMES = (CORRECT, *KINDS)


@dataclass
class Objects:
    """Objects of one picture, annotated or detected.

    Args:
        labels: Class indices, ``(N,)``.
        boxes: x, y, width and height in pixels, ``(N, 4)``.
        masks: Run lengths as of pycocotools, or None.
        scores: ``(N,)``, of detections.
        ignored: ``(N,)``, crowds among annotations: who finds them is neither right nor wrong.
    """

    labels: np.ndarray
    boxes: np.ndarray
    masks: list[dict] | None = None
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0))
    ignored: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def regions(self, kind: str) -> Any:
        return self.boxes if kind == 'bbox' else self.masks


def evaluated(truth: Objects, found: Objects, kind: str) -> dict[int, dict]:
    """Match the detections of a picture by pycocotools.

    Args:
        truth: The annotations.
        found: All detections.
        kind: ``'bbox'`` or ``'segm'``.

    Returns:
        For each class of either: what ``COCOeval.evaluateImg`` returns for areas of any size. Its ids are positions
        in ``truth`` and ``found``, plus one.
    """
    from pycocotools.cocoeval import COCOeval

    coco = COCOeval(iouType=kind)
    coco.params.maxDets = [_MOST]
    key = 'bbox' if kind == 'bbox' else 'segmentation'
    for index, (label, region) in enumerate(zip(truth.labels, truth.regions(kind), strict=True)):
        crowd = int(truth.ignored[index])
        coco._gts[0, label].append({'id': index + 1, key: region, 'area': 1, 'iscrowd': crowd, 'ignore': crowd})
    for index, (label, region) in enumerate(zip(found.labels, found.regions(kind), strict=True)):
        coco._dts[0, label].append({'id': index + 1, key: region, 'area': 1, 'score': found.scores[index]})
    results = {}
    for label in np.union1d(truth.labels, found.labels).tolist():
        coco.ious[0, label] = coco.computeIoU(0, label)
        results[label] = coco.evaluateImg(0, label, [0, 1e10], _MOST)
    return results


@dataclass
class Outcome:
    """What became of the annotations and the detections of one picture.

    Attributes:
        found: The kind of each detection: :data:`CORRECT`, one of :data:`KINDS`, or empty if it is not counted (its
            score is too low, or it found a crowd).
        truth: The kind of each annotation: correct, confused, poor overlap, missed, or empty for crowds.
        taken_for: For each detection the annotation that it found, or was taken for; -1 without any.
    """

    found: list[str]
    truth: list[str]
    taken_for: list[int]


def judged(truth: Objects, found: Objects, kind: str, results: dict[int, dict], score_thr: float) -> Outcome:
    """Tell what is right and what is wrong in a picture.

    Args:
        truth: The annotations.
        found: All detections.
        kind: ``'bbox'`` or ``'segm'``.
        results: As of :func:`evaluated`.
        score_thr: Detections below are not counted.
    """
    outcome = Outcome([''] * len(found.labels), [''] * len(truth.labels), [-1] * len(found.labels))
    negatives = []
    for result in results.values():
        for id_, score, match, ignored in zip(
            result['dtIds'], result['dtScores'], result['dtMatches'][0], result['dtIgnore'][0], strict=True
        ):
            if score >= score_thr and match and not ignored:
                outcome.found[id_ - 1], outcome.taken_for[id_ - 1] = CORRECT, int(match) - 1
                outcome.truth[int(match) - 1] = CORRECT
            elif score >= score_thr and not match:
                negatives.append(id_ - 1)
    counted = np.flatnonzero(~truth.ignored)
    negatives.sort(key=lambda index: -found.scores[index])
    ious = _ious(found, negatives, truth, counted, kind)
    for row, index in zip(ious, negatives, strict=True):
        what, column = _why(row, found.labels[index] == truth.labels[counted])
        outcome.found[index] = what
        if column >= 0:
            outcome.taken_for[index] = place = int(counted[column])
            if not outcome.truth[place] and what in ('confused', 'poor overlap'):
                outcome.truth[place] = what
    for place in counted:
        outcome.truth[place] = outcome.truth[place] or 'missed'
    return outcome


def _why(ious: np.ndarray, same: np.ndarray) -> tuple[str, int]:
    """Why a detection found nothing, by TIDE's rules in TIDE's order, and the annotation that it is about."""
    if not len(ious):
        return 'false', -1
    own, other = np.where(same, ious, 0), np.where(same, 0, ious)
    if NEAR_IOU <= own.max() <= FOUND_IOU:
        return 'poor overlap', int(own.argmax())
    if other.max() >= FOUND_IOU:
        return 'confused', int(other.argmax())
    if own.max() >= FOUND_IOU:
        return 'double', int(own.argmax())
    return 'false', -1


def _ious(found: Objects, chosen: Sequence[int], truth: Objects, counted: np.ndarray, kind: str) -> np.ndarray:
    """The IoU of some detections with some annotations, ``(len(chosen), len(counted))``."""
    from pycocotools import mask as coco

    if not len(chosen) or not len(counted):
        return np.zeros((len(chosen), 0))
    one, other = found.regions(kind), truth.regions(kind)
    regions = [one[index] for index in chosen], [other[index] for index in counted]
    if kind == 'bbox':
        regions = np.asarray(regions[0], float), np.asarray(regions[1], float)
    return np.asarray(coco.iou(*regions, [0] * len(counted)))


def confusion(truth: Objects, found: Objects, outcome: Outcome, classes: int) -> np.ndarray:
    """Count a picture in a confusion matrix, ``(classes + 1, classes + 1)``; the last row and column are background.

    A row is an annotated class, a column a predicted one. Columns add up to the detections: correct ones are on the
    diagonal, confused ones beside it, all others in the last row. The last column has the objects that none of them
    found or confused.
    """
    matrix = np.zeros((classes + 1, classes + 1), int)
    for label, kind, place in zip(found.labels, outcome.found, outcome.taken_for, strict=True):
        if kind:
            matrix[truth.labels[place] if kind in (CORRECT, 'confused') else classes, label] += 1
    for label, kind in zip(truth.labels, outcome.truth, strict=True):
        if kind in ('missed', 'poor overlap'):
            matrix[label, classes] += 1
    return matrix


def tally(truth: Objects, found: Objects, outcome: Outcome, classes: int) -> np.ndarray:
    """Count a picture by class and outcome, ``(2, classes, len(OUTCOMES))``: the annotations, then the detections."""
    counts = np.zeros((2, classes, len(OUTCOMES)), int)
    for index, (labels, kinds) in enumerate(((truth.labels, outcome.truth), (found.labels, outcome.found))):
        for label, kind in zip(labels, kinds, strict=True):
            if kind:
                counts[index, label, OUTCOMES.index(kind)] += 1
    return counts


def mistakes_in(counts: np.ndarray) -> dict[str, int]:
    """The objects that were missed, and the detections of all other kinds, from :func:`tally`."""
    return {kind: int(counts[int(kind != 'missed'), :, OUTCOMES.index(kind)].sum()) for kind in KINDS}
