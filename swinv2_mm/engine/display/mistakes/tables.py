"""The tables of the page: a row per class, and which classes are taken for which."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from swinv2_mm.engine.display.mistakes.matching import OUTCOMES

_MOST = 30  # classes of a matrix
_PAIRS, _LEAST = 12, 0.001  # the most pairs, and the least share of the wrong pixels
_IN_TRUTH, _IN_FOUND = ('missed',), ('false', 'confused', 'poor overlap', 'double')


def share(part: float, whole: float) -> str:
    return f'{100 * part / whole:.0f} %' if whole else '–'


def sparse(counts: np.ndarray) -> np.ndarray:
    """The entries of an array that are not zero, ``(axes + 1, entries)``: their places, and their values."""
    return np.stack([*counts.nonzero(), counts[counts.nonzero()]])


def total(entries: Iterable[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """The sum of sparse arrays of a shape."""
    counts = np.zeros(shape, np.int64)
    for *places, values in entries:
        counts[tuple(places)] += values
    return counts


def class_rows(classes: list[str], counts: np.ndarray, precisions: Mapping[str, np.ndarray]) -> dict:
    """Average precision of each class, and what became of its objects and detections; the worst first.

    Args:
        classes: Names.
        counts: Of :func:`~swinv2_mm.engine.display.mistakes.matching.tally`, over all pictures.
        precisions: By ``'box'`` and ``'mask'``: AP and AP at an IoU of 0.5, ``(classes, 2)``.
    """
    head = ['class', *[f'{name} {what}' for name in precisions for what in ('AP', 'AP50')], 'objects', 'found']
    head += [*_IN_TRUTH, 'detections', 'correct', *_IN_FOUND]
    rows = []
    first = next(iter(precisions.values()))[:, 0]
    for label in np.argsort(first, kind='stable').tolist():  # NaN, of classes without objects, come last
        numbers = ['–' if np.isnan(value) else f'{value:.3f}' for ap in precisions.values() for value in ap[label]]
        for of_class, shown in zip(counts[:, label], (_IN_TRUTH, _IN_FOUND), strict=True):
            number = dict(zip(OUTCOMES, of_class.tolist(), strict=True))
            numbers += [str(of_class.sum()), share(of_class[0], of_class.sum()), *[str(number[what]) for what in shown]]
        rows.append([classes[label], *numbers])
    words = (
        'Objects that are neither found nor missed were confused or poorly overlapped. A click on a column sorts, on a '
        'class shows its pictures.'
    )
    return {'title': 'Classes', 'head': head, 'rows': rows, 'words': words}


def matrix_table(names: list[str], matrix: np.ndarray, words: str, percent: bool = False) -> dict:
    """A confusion matrix; of many classes, those with the most confusion.

    Args:
        names: Of the rows and columns.
        matrix: Counts, rows are annotated and columns predicted.
        words: What it shows.
        percent: Show shares of the rows in the place of counts.
    """
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    kept = list(range(len(names)))
    if len(names) > _MOST:
        kept = sorted(np.argsort(-wrong, kind='stable')[:_MOST].tolist())
        words += f' The {_MOST} of {len(names)} with the most confusion; shares are of all.'
    sums = np.maximum(matrix.sum(1), 1)
    rows = []
    for row in kept:
        shares = [round(float(matrix[row, column] / sums[row]), 4) for column in kept]
        counts = [int(matrix[row, column]) for column in kept]
        texts = [f'{100 * each:.1f}' if percent else str(n) for each, n in zip(shares, counts, strict=True)]
        rows.append([names[row], shares, [text if n else '' for text, n in zip(texts, counts, strict=True)]])
    title = 'Confusion, % of the annotated pixels' if percent else 'Confusion'
    return {'title': title, 'columns': [names[each] for each in kept], 'rows': rows, 'words': words}


def confused_pairs(names: list[str], matrix: np.ndarray) -> dict:
    """The pairs of classes that take the most pixels from each other."""
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    rows = []
    for place in np.argsort(-wrong, axis=None, kind='stable')[:_PAIRS].tolist():
        one, other = divmod(place, len(names))
        of_all = wrong[one, other] / max(1, wrong.sum())
        if of_all >= _LEAST:
            of_class = wrong[one, other] / matrix[one].sum()
            rows.append([names[one], names[other], f'{100 * of_class:.1f} %', f'{100 * of_all:.1f} %'])
    head = ['annotated', 'predicted', 'of its pixels', 'of all wrong pixels']
    return {'title': 'Most confused', 'head': head, 'rows': rows}
