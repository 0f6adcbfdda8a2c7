"""Pictures of several sizes: a few that differ most, as they leave the pipeline of their data set."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

from mmengine.dataset import BaseDataset
from PIL import Image

MOST = 200  # pictures of a data set whose size is looked up, without decoding them
_ORIENTATION = 0x0112  # in EXIF; from 5 on rows and columns are exchanged


def varied_samples(dataset: BaseDataset, number: int = 8) -> Iterator[tuple[str, Any]]:
    """The path and the sample of up to ``number`` pictures, first those of the most different sizes.

    Pictures that cannot be read are left out: who checks sizes is not the one to tell.
    """
    entries = dataset.data_list
    looked_up = entries[:: -(-len(entries) // MOST) or 1]
    of_size: dict[tuple[int, int], dict] = {}
    for entry in looked_up:
        size = picture_size(entry.get('img_path'))
        if size is not None:
            of_size.setdefault(size, entry)
    chosen = [of_size[size] for size in _most_different([*of_size], number)]
    chosen += [entry for entry in _evenly(looked_up, number) if all(entry is not other for other in chosen)]
    for entry in chosen[:number]:
        try:
            yield entry['img_path'], dataset.pipeline(dict(deepcopy(entry), sample_idx=0))
        except Exception:  # corrupt files, transforms that want other samples
            continue


def picture_size(path: Any) -> tuple[int, int] | None:
    """``(rows, columns)`` of a picture as it is shown, from its header; None if that cannot be read."""
    try:
        with Image.open(path) as image:
            columns, rows = image.size
            return (columns, rows) if image.getexif().get(_ORIENTATION, 1) > 4 else (rows, columns)
    except Exception:  # PIL does not know every format, and raises errors of many types
        return None


def _most_different(sizes: Sequence[tuple[int, int]], number: int) -> list[tuple[int, int]]:
    """The smallest, the largest, and some of different aspect ratios."""
    by_area = sorted(sizes, key=lambda size: size[0] * size[1])
    by_ratio = sorted(sizes, key=lambda size: size[0] / size[1])
    return [*dict.fromkeys([*by_area[:1], *by_area[-1:], *_evenly(by_ratio, number - 2)])]


def _evenly(items: Sequence, number: int) -> list:
    """So many of the items, from the first to the last."""
    if len(items) <= number:
        return list(items)
    return [items[index * (len(items) - 1) // (number - 1)] for index in range(number)]
