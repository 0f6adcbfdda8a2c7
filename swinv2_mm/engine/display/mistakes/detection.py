"""The mistakes of a detector: what became of each object, average precision and confusion by class."""

from typing import Any

import numpy as np

from swinv2_mm.engine.display.gallery.outlines import outline
from swinv2_mm.engine.display.mistakes.matching import (
    CORRECT,
    FOUND_IOU,
    KINDS,
    NEAR_IOU,
    OUTCOMES,
    Objects,
    Outcome,
    confusion,
    evaluated,
    judged,
    mistakes_in,
    tally,
)
from swinv2_mm.engine.display.mistakes.precision import average_precision, best_threshold, compact, joined
from swinv2_mm.engine.display.mistakes.tables import class_rows, matrix_table, share, sparse, total
from swinv2_mm.errors import UserError


class Detections:
    """Collects the pictures of a detector.

    Args:
        classes: Names.
        score_thr: Detections below are not counted.
        masks: Compare masks in the place of boxes.
    """

    sorts = ('mistakes', *KINDS)

    def __init__(self, classes: list[str], score_thr: float, masks: bool = False):
        self._classes, self._score_thr, self._kind = classes, score_thr, 'segm' if masks else 'bbox'

    def record(self, sample: Any, info: dict) -> tuple[dict, Any]:
        """Judge a picture.

        Args:
            sample: Of mmdet, with ``pred_instances`` in pixels of the image as it was loaded.
            info: What the data set knows of it, with ``instances``.

        Returns:
            Numbers that all pictures keep, and a function that gives what the page shows of this one.
        """
        predicted = sample.get('pred_instances')
        if predicted is None:
            raise UserError(
                '--report: the predictions of this model have no pred_instances, boxes or masks of objects, which '
                'the page would compare with the annotations. It shows detectors, and segmentors of MMSegmentation.'
            )
        height, width = (int(each) for each in sample.ori_shape[:2])
        masks = self._kind == 'segm'
        truth, found = _annotated(info, height, width, masks), _detected(predicted, masks)
        results = {kind: evaluated(truth, found, kind) for kind in dict.fromkeys(('bbox', self._kind))}
        outcome = judged(truth, found, self._kind, results[self._kind], self._score_thr)
        counts = tally(truth, found, outcome, len(self._classes))
        mistakes = mistakes_in(counts)
        record = {
            'order': {'mistakes': sum(mistakes.values())} | mistakes,
            'counts': sparse(counts),
            'matrix': sparse(confusion(truth, found, outcome, len(self._classes))),
            'results': {each: compact(result) for each, result in results.items()},
            'size': (width, height),
        }
        return record, lambda: _shown(truth, found, outcome)

    def entry(self, record: dict) -> dict:
        """What the page shows of a picture."""
        width, height = record['size']
        objects = []
        for shown, mask in record['detail']:
            objects.append(shown if mask is None else shown | {'p': outline(mask, height, width)})
        return {'objects': objects}

    def content(self, records: list[dict]) -> dict:
        """Numbers, tables and kinds of mistakes above the pictures."""
        classes = self._classes
        counts = total((record['counts'] for record in records), (2, len(classes), len(OUTCOMES)))
        matrix = total((record['matrix'] for record in records), (len(classes) + 1,) * 2)
        kinds = {'bbox': 'box', 'segm': 'mask'} if self._kind == 'segm' else {'bbox': 'box'}
        arrays = {kind: joined(record['results'][kind] for record in records) for kind in kinds}
        precisions = {name: average_precision(arrays[kind], len(classes)) for kind, name in kinds.items()}
        (objects, detections), right = counts.sum((1, 2)).tolist(), int(counts[0, :, 0].sum())
        return {
            'tiles': [
                *[[f'{np.nanmean(ap[:, 0]):.3f}', f'{name} AP'] for name, ap in precisions.items() if objects],
                [share(right, objects), f'of {objects} objects found'],
                [share(right, detections), f'of {detections} detections correct'],
                *[[str(number), kind, kind] for kind, number in mistakes_in(counts).items()],
            ],
            'rule': self._rule(best_threshold(arrays[self._kind])),
            'tables': [class_rows(classes, counts, precisions)],
            'matrix': matrix_table([*classes, 'background'], matrix, _MATRIX_WORDS),
            'kinds': [[name, colour, meaning] for name, (colour, meaning) in KINDS.items()] + [[CORRECT, *_CORRECT]],
        }

    def _rule(self, best: tuple | None) -> str:
        region = 'boxes' if self._kind == 'bbox' else 'masks'
        rule = (
            f'Counted are detections with a score of at least {self._score_thr:g}. They are matched by {region} as in '
            f"COCO's metric, at an IoU of {FOUND_IOU}; what found nothing is told apart as by TIDE, from an IoU of "
            f'{NEAR_IOU} on. AP counts detections of all scores. '
        )
        if best:
            score, f1, precision, recall = best
            rule += (
                f'F1 is largest, {f1:.2f}, from a score of {score:.2f} on: there {100 * precision:.0f} % of the '
                f'detections are correct and {100 * recall:.0f} % of the objects are found.'
            )
        return rule


_CORRECT = ('rgb(40,160,90)', 'found, with the right class')
_MATRIX_WORDS = (
    'Correct detections are on the diagonal, confused ones beside it, and those without an object of their own in the '
    'last row. The last column has the objects that no detection found or confused. Colours: the share of the row.'
)


def _annotated(info: dict, height: int, width: int, masks: bool) -> Objects:
    instances = list(info.get('instances') or ())
    corners = np.array([each['bbox'] for each in instances], float).reshape(-1, 4)
    return Objects(
        labels=np.array([int(each['bbox_label']) for each in instances], int),
        boxes=_with_size(corners),
        masks=[_run_lengths(each, height, width) for each in instances] if masks else None,
        ignored=np.array([bool(each.get('ignore_flag')) for each in instances], bool),
    )


def _detected(predicted: Any, masks: bool) -> Objects:
    from pycocotools import mask as coco

    boxes = getattr(predicted.bboxes, 'tensor', predicted.bboxes).detach().cpu().double().numpy()
    regions = None
    if masks:
        regions = predicted.masks
        if not isinstance(regions, list | tuple):
            arrays = regions.detach().cpu().numpy().astype(np.uint8)
            regions = [coco.encode(np.asfortranarray(each)) for each in arrays]
    return Objects(
        labels=predicted.labels.cpu().numpy().astype(int),
        boxes=_with_size(boxes.reshape(-1, 4)),
        masks=regions,
        scores=predicted.scores.detach().cpu().double().numpy(),
    )


def _with_size(corners: np.ndarray) -> np.ndarray:
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _run_lengths(instance: dict, height: int, width: int) -> dict:
    """The mask of an annotation; that of its box if it has none."""
    from pycocotools import mask as coco

    mask = instance.get('mask')
    if not mask:
        x1, y1, x2, y2 = instance['bbox']
        mask = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if isinstance(mask, dict):
        return coco.frPyObjects(mask, height, width) if isinstance(mask['counts'], list) else mask
    return coco.merge(coco.frPyObjects(mask, height, width))


def _shown(truth: Objects, found: Objects, outcome: Outcome) -> list[tuple[dict, dict | None]]:
    """The counted objects as page.js draws them, each with its mask."""
    shown: list[tuple[dict, dict | None]] = []
    for index, what in enumerate(outcome.truth):
        entry: dict[str, Any] = {'c': int(truth.labels[index]), 'b': _corners(truth.boxes[index]), 't': 1}
        if not what:
            entry['i'] = 1
        elif what != CORRECT:
            entry['k'] = what
        shown.append((entry, truth.masks[index] if truth.masks else None))
    for index, what in enumerate(outcome.found):
        if what:
            entry = {'c': int(found.labels[index]), 'b': _corners(found.boxes[index]), 'k': what}
            entry['s'] = round(float(found.scores[index]), 3)
            if what == 'confused':
                entry['g'] = int(truth.labels[outcome.taken_for[index]])
            shown.append((entry, found.masks[index] if found.masks else None))
    return shown


def _corners(box: np.ndarray) -> list[float]:
    x, y, width, height = box.tolist()
    return [round(each, 1) for each in (x, y, x + width, y + height)]
