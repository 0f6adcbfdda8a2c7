"""The mistakes of a segmentor: IoU by class and by picture, and which classes are taken for which."""

from typing import Any

import numpy as np

from swinv2_mm.engine.display.gallery.outlines import overlay
from swinv2_mm.engine.display.gallery.page import css
from swinv2_mm.engine.display.mistakes.tables import confused_pairs, matrix_table, sparse, total
from swinv2_mm.errors import UserError

_WRONG = (225, 20, 40)
_MATRIX_WORDS = 'A row is an annotated class, and adds up to 100 %.'


class Maps:
    """Collects the pictures of a segmentor.

    Args:
        classes: Names.
        colours: RGB of each.
        ignore_index: The label of pixels that do not count.
    """

    sorts = ('lowest IoU', 'wrong pixels')

    def __init__(self, classes: list[str], colours: list, ignore_index: int = 255):
        self._classes, self._colours, self._ignored = classes, colours, ignore_index

    def record(self, sample: Any, annotated: np.ndarray | None) -> tuple[dict, Any]:
        """Judge a picture.

        Args:
            sample: Of mmseg, with ``pred_sem_seg``.
            annotated: Its labels, ``(H, W)``.

        Returns:
            Numbers that all pictures keep, and a function that gives what the page shows of this one.
        """
        if sample.get('pred_sem_seg') is None or annotated is None:
            raise UserError('--report: the test gives no predicted or no annotated map to compare.')
        predicted = sample.pred_sem_seg.data.squeeze(0).cpu().numpy()
        if predicted.shape != annotated.shape:
            raise UserError(
                f'--report: a map of {predicted.shape} was predicted for annotations of {annotated.shape}; in the '
                "test's pipeline, LoadAnnotations belongs behind Resize."
            )
        number = len(self._classes)
        counted = (annotated != self._ignored) & (annotated < number)
        matrix = confusion_of(annotated[counted], predicted[counted], number)
        iou = iou_of(matrix)
        wrong = 1 - matrix.diagonal().sum() / max(1, matrix.sum())
        record = {
            'order': {'lowest IoU': 0.0 if np.isnan(iou).all() else 1 - float(np.nanmean(iou)), 'wrong pixels': wrong},
            'matrix': sparse(matrix),
            'iou': {label: float(iou[label]) for label in np.flatnonzero(~np.isnan(iou)).tolist()},
        }
        return record, lambda: self._maps(annotated, predicted, counted)

    def _maps(self, annotated: np.ndarray, predicted: np.ndarray, counted: np.ndarray) -> dict[str, str]:
        wrong = np.where(counted & (annotated != predicted), 0, 1)
        return {
            'errors': overlay(wrong, [_WRONG]),
            'prediction': overlay(predicted, self._colours),
            'annotation': overlay(np.where(counted, annotated, 65535), self._colours),
        }

    def entry(self, record: dict) -> dict:
        """What the page shows of a picture."""
        order = record['order']
        ious = sorted(record['iou'].items(), key=lambda pair: pair[1])
        return {
            'maps': record['detail'],
            'shares': [[self._classes[label], f'IoU {value:.2f}', css(self._colours[label])] for label, value in ious],
            'words': [f'IoU {1 - order["lowest IoU"]:.2f}', f'{100 * order["wrong pixels"]:.1f} % wrong'],
        }

    def content(self, records: list[dict]) -> dict:
        """Numbers and tables above the pictures."""
        number = len(self._classes)
        matrix = total((record['matrix'] for record in records), (number, number))
        iou, right = iou_of(matrix), matrix.diagonal()
        with np.errstate(invalid='ignore', divide='ignore'):
            columns = [iou, right / matrix.sum(1), right / matrix.sum(0), matrix.sum(1) / matrix.sum()]
        rows = [
            [self._classes[label], *['–' if np.isnan(each[label]) else f'{100 * each[label]:.1f}' for each in columns]]
            for label in np.argsort(iou, kind='stable').tolist()
        ]
        present = matrix.sum(1) > 0
        accuracy = float(np.mean(columns[1][present])) if present.any() else 0.0
        return {
            'tiles': [
                [f'{100 * np.nanmean(iou):.1f}', 'mIoU, %'],
                [f'{100 * right.sum() / max(1, matrix.sum()):.1f}', 'pixels right, %'],
                [f'{100 * accuracy:.1f}', 'mean class accuracy, %'],
                *[[row[1], f'IoU of {row[0]}, the lowest'] for row in rows[:1]],
            ],
            'rule': (
                f'Pixels annotated as {self._ignored} do not count. IoU, mIoU and accuracies are those of '
                "MMSegmentation's IoUMetric, from the pixels of all pictures. The IoU of a picture is the mean over "
                'the classes that it has, annotated or predicted.'
            ),
            'tables': [
                {'title': 'Classes', 'head': ['class', 'IoU', 'recall', 'precision', 'pixels, %'], 'rows': rows},
                confused_pairs(self._classes, matrix),
            ],
            'matrix': matrix_table(self._classes, matrix, _MATRIX_WORDS, percent=True),
        }


def confusion_of(annotated: np.ndarray, predicted: np.ndarray, number: int) -> np.ndarray:
    """Count pairs of labels, ``(number, number)``: rows are annotated, columns predicted."""
    pairs = annotated.astype(np.int64) * number + predicted
    return np.bincount(pairs.ravel(), minlength=number * number).reshape(number, number)


def iou_of(matrix: np.ndarray) -> np.ndarray:
    """The IoU of each class, NaN for those that are neither annotated nor predicted."""
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    return np.where(union > 0, matrix.diagonal() / np.maximum(union, 1), np.nan)
