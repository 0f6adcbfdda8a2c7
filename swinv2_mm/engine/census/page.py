"""A page to look at: pictures of data sets with their annotations, in one HTML file that needs nothing else."""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from colorsys import hls_to_rgb
from html import escape
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.engine.census.outlines import jpeg, objects_of, overlay, shares_of
from swinv2_mm.engine.display.loading import map_of, path_in, picture_of
from swinv2_mm.errors import listed

_TEMPLATE = Path(__file__).with_name('page.html')
_EACH_CLASS = 3  # pictures that should show a class


def write_page(
    path: str | os.PathLike,
    title: str,
    datasets: Mapping[str, BaseDataset],
    report: str = '',
    at_most: int = 50,
    bgr_to_rgb: bool = False,
) -> None:
    """Write pictures of data sets with their annotations; the file appears complete or not at all.

    Args:
        path: The HTML file.
        title: Its heading.
        datasets: By the names that the page shows; ``full_init`` has been called. Images and semantic maps are read by
            their pipelines. An image or annotation that cannot be read is named on the page.
        report: Text to show above the pictures, such as a table of counts.
        at_most: How many pictures of each data set. They are evenly spaced, and few classes are left out.
        bgr_to_rgb: See :func:`~swinv2_mm.engine.display.loading.swaps_channels`.

    Raises:
        OSError: It cannot be written.
    """
    content = {'datasets': [], 'pictures': []}
    for index, (name, dataset) in enumerate(datasets.items()):
        listed_here = getattr(dataset, 'data_list', ())  # empty if it is serialized
        indices = range(len(dataset))
        chosen = choose([classes_in(i) for i in listed_here or map(dataset.get_data_info, indices)], at_most)
        infos = [dataset.get_data_info(i) for i in chosen]
        above = _common([path_in(info) or '' for info in infos])
        classes = [str(each) for each in dataset.metainfo.get('classes') or ()]
        pictures = [{'d': index} | _entry(dataset, info, classes, above, bgr_to_rgb) for info in infos]
        content['pictures'] += pictures
        content['datasets'].append(
            {
                'name': name,
                'number': len(dataset),
                'classes': classes,
                'colours': [_css(colour) for colour in _hues(len(classes))],
            }
        )
    parts = {
        'TITLE': escape(title),
        'REPORT': escape(report),
        'DATA': json.dumps(content, allow_nan=False).replace('<', '\\u003c'),
    }
    page = re.sub('%%([A-Z]+)%%', lambda found: parts[found[1]], _TEMPLATE.read_text(encoding='utf-8'))
    with replacing(path) as partial:
        partial.write_text(page, encoding='utf-8', errors='replace')


def classes_in(info: dict) -> set[int]:
    """The labels of the objects of a sample, without those that are ignored."""
    return {
        int(instance.get('bbox_label', -1))
        for instance in info.get('instances') or ()
        if not instance.get('ignore_flag')
    }


def choose(classes: Sequence[set[int]], at_most: int) -> list[int]:
    """Choose samples: some of each class, the rarest first, and then evenly spaced.

    Args:
        classes: The labels of each sample.
        at_most: How many samples.

    Returns:
        Their indices, in order.
    """
    chosen: set[int] = set()
    shown: Counter = Counter()
    has: dict[int, list[int]] = {}
    for index, labels in enumerate(classes):
        for label in labels:
            has.setdefault(label, []).append(index)
    for wanted in range(1, _EACH_CLASS + 1):
        for label in sorted(has, key=lambda label: (len(has[label]), label)):
            if shown[label] < wanted and len(chosen) < at_most:
                for index in _spaced([index for index in has[label] if index not in chosen], 1):
                    chosen.add(index)
                    shown.update(classes[index])
    left = [index for index in range(len(classes)) if index not in chosen]
    return sorted(chosen | set(_spaced(left, at_most - len(chosen))))


def _spaced(items: list[int], number: int) -> list[int]:
    """Some items, evenly spaced: of one, that in the middle."""
    number = min(number, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * number)] for i in range(number)]


def _common(paths: list[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # none, or of several drives
        return ''


def _entry(dataset: Any, info: dict, classes: list[str], above: str, bgr_to_rgb: bool) -> dict:
    """What the page knows of one picture; in the place of what cannot be read, ``faults`` say why."""
    path = path_in(info) or f'sample {info.get("sample_idx")}'
    entry: dict[str, Any] = {'path': path, 'name': path[len(above) :].lstrip(os.sep) if above else path, 'faults': []}
    try:
        picture = picture_of(dataset, info, bgr_to_rgb)
        height, width = picture.shape[:2]
        entry |= {'w': width, 'h': height, 'src': jpeg(picture)}
        said = info.get('width', width), info.get('height', height)
        if said != (width, height):
            entry['faults'].append(f'it has {width} x {height} pixels, its annotations are for {said[0]} x {said[1]}')
        entry['objects'], faults = objects_of(info, said[1], said[0])
        entry['faults'] += [f'{listed(faults, 3)}'] if faults else []
        labels = map_of(dataset, info)
        if labels is not None:
            colours = _map_colours(dataset, classes)
            if 'instances' in info:  # then the classes are those of the objects
                classes = [f'label {label}' for label in range(256)]
                colours = _hues(256)
            shares = shares_of(labels, len(classes))
            entry['map'] = overlay(labels, colours)
            entry['shares'] = [[classes[label], share, _css(colours[label])] for label, share in shares]
    except Exception as error:  # of files, decoders and loading transforms
        entry['faults'].append(' '.join(f'{type(error).__name__}: {error}'.split()))
    return entry


def _map_colours(dataset: Any, classes: list[str]) -> list[Sequence[int]]:
    """The data set's own colours for its classes, if it has them."""
    palette = dataset.metainfo.get('palette')
    if isinstance(palette, list | tuple) and len(palette) >= len(classes) and all(len(each) == 3 for each in palette):
        return list(palette[: len(classes)])
    return _hues(len(classes))


def _hues(number: int) -> list[Sequence[int]]:
    """Bright colours; neighbours differ by the golden angle, so that any few of them are far apart."""
    return [[round(255 * part) for part in hls_to_rgb(0.02 + 0.618034 * i, 0.55, 0.9)] for i in range(number)]


def _css(colour: Sequence[int]) -> str:
    return f'rgb({",".join(str(int(part)) for part in colour)})'
