"""Semantic maps: the share of pixels per class in evenly spaced maps, as the pipeline loads them."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.errors import UserError, listed

MOST = 100  # maps that are read before a training


@dataclass
class Pixels:
    """Pixels of the maps that were read."""

    counts: Counter[int] = field(default_factory=Counter)  # by label; without the ignored ones
    ignored: int = 0
    read: int = 0
    all_read: bool = False

    def share(self, label: int) -> float:
        """The share of a label in all pixels, ignored ones too."""
        return self.counts[label] / max(1, self.counts.total() + self.ignored)


def read_maps(
    entries: Sequence[dict],
    load: Callable[[dict], dict],
    num_classes: int,
    ignore_index: int,
    where: str,
    most: int | None = MOST,
    track: Callable[[Sequence[dict]], Iterable[dict]] = iter,
) -> Pixels:
    """Count the pixels of at most ``most`` maps.

    Args:
        load: The pipeline's transform, which puts ``gt_seg_map``, ``(H, W)``, into an entry.
        where: The data set, to begin a message with.
        track: Shows the progress.

    Raises:
        UserError: A map has labels beyond the classes, more than one channel, or wider numbers than the loading keeps.
    """
    chosen = entries
    if most is not None and len(entries) > most:
        chosen = [entries[round(index * (len(entries) - 1) / (most - 1))] for index in range(most)]
    pixels = Pixels(all_read=len(chosen) == len(entries))
    for entry in track(chosen):
        labels = _labels(entry, load, where)
        if labels is None:
            continue
        pixels.read += 1
        found = counts_of(labels)
        pixels.ignored += found.pop(ignore_index, 0)
        wrong = [value for value in found if not 0 <= value < num_classes]
        if wrong:
            raise UserError(
                f'{where}: {entry["seg_map_path"]} has labels {listed(wrong)} in '
                f'{sum(found[value] for value in wrong)} pixels; the {num_classes} classes are 0 to {num_classes - 1}, '
                f'and {ignore_index} is ignored. Write the maps anew with the index of '
                'the class as value, or name all classes in metainfo and num_classes.'
            )
        pixels.counts.update(found)
    return pixels


def counts_of(labels: np.ndarray) -> dict[int, int]:
    """How many pixels each label has."""
    if labels.dtype == np.uint8:  # sorting the pixels would take fifty times as long
        numbers = np.bincount(labels.ravel(), minlength=256)
        return {int(value): int(numbers[value]) for value in numbers.nonzero()[0]}
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _labels(entry: dict, load: Callable[[dict], dict], where: str) -> Any:
    """The labels of one map; None if it cannot be read, which the run will say when it reads it."""
    path = entry.get('seg_map_path')
    if not path or not Path(path).exists():
        return None
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, largest = image.mode, image.getextrema()[1] if image.mode.startswith(('I', 'F')) else 0
    except Exception:  # no picture, or one that only the pipeline can read
        mode, largest = '', 0
    if largest > 255:
        raise UserError(
            f'{where}: {path} has values up to {largest}; MMSegmentation keeps 8 bits of them, which would give other '
            'labels. Write the maps anew with the index of the class as value, in 8 bits.'
        )
    try:
        labels = load(dict(entry, seg_fields=[])).get('gt_seg_map')
    except Exception:
        return None
    if isinstance(labels, np.ndarray) and labels.ndim == 3:
        raise UserError(
            f'{where}: {path} has {labels.shape[2]} channels ({mode}), a picture of colours. A map has one: the index '
            'of the class of each pixel. Write the maps anew.'
        )
    return labels


def check_pixels(pixels: Pixels, num_classes: int, ignore_index: int, where: str) -> None:
    """Refuse maps from which nothing can be learned.

    Raises:
        UserError: Every pixel is ignored, or all but those of one class.
    """
    if not pixels.read:
        return
    ignored = (
        f'{pixels.ignored / (pixels.ignored + pixels.counts.total()):.1%} of their pixels are {ignore_index}, ignored'
    )
    remedy = (
        'Where these stand for a class, as in masks of 0 and 255, write the maps anew with the index of the class as '
        'value. With reduce_zero_label=True, 0 is ignored, too.'
    )
    if not pixels.counts:
        raise UserError(f'{where}: nothing can be learned from {pixels.read} maps: {ignored}. {remedy}')
    if len(pixels.counts) == 1 < num_classes and pixels.ignored:
        only = f'{pixels.read} maps have no label but {next(iter(pixels.counts))}'
        raise UserError(f'{where}: {only}; {ignored}. {remedy}')
