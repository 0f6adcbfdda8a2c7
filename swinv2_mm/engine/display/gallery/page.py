"""One HTML file with pictures, what lies on them, and filters; it needs no network, no server and no other file."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from colorsys import hls_to_rgb
from html import escape
from itertools import accumulate
from pathlib import Path
from typing import Any

from swinv2_mm.checkpoints.files import replacing

_FOLDER = Path(__file__).parent
_EACH_CLASS = 3  # pictures that should show a class
BYTES = 32 << 20  # of the pictures of a page


def write_gallery(path: str | os.PathLike, title: str, content: dict, report: str = '') -> None:
    """Write a page; the file appears complete or not at all.

    Args:
        path: The HTML file.
        title: Its heading.
        content: What ``page.js`` reads. ``datasets``, each with its ``name``, ``number`` of pictures, ``classes`` and
            ``colours``, and ``pictures``, each with its data set ``d``, ``path``, ``name`` and ``faults``, are
            necessary. Every name in it is shown as text.
        report: Text to show above the pictures, such as a table of counts.

    Raises:
        OSError: It cannot be written.
    """
    parts = {
        'TITLE': escape(title),
        'REPORT': escape(report),
        'STYLE': _FOLDER.joinpath('page.css').read_text(encoding='utf-8'),
        'SCRIPT': _FOLDER.joinpath('page.js').read_text(encoding='utf-8'),
        'DATA': json.dumps(content, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c'),
    }
    page = _FOLDER.joinpath('page.html').read_text(encoding='utf-8')
    page = re.sub('%%([A-Z]+)%%', lambda found: parts[found[1]], page)
    with replacing(path) as partial:
        partial.write_text(page, encoding='utf-8', errors='replace')


def choose(classes: Sequence[set[int]], at_most: int) -> list[int]:
    """Choose pictures: some of each class, the rarest first, and then evenly spaced.

    Args:
        classes: The labels of each picture.
        at_most: How many pictures.

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


def within(pictures: Sequence[dict], size: int = BYTES) -> list[dict]:
    """The first pictures whose embedded images together have at most so many bytes."""
    sizes = [len(picture.get('src') or '') + sum(map(len, picture.get('maps', {}).values())) for picture in pictures]
    return [picture for picture, total in zip(pictures, accumulate(sizes), strict=True) if total <= size]


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all files are in; empty if there is none."""
    try:
        return os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # no file, or of several drives
        return ''


def below(path: str, folder: str) -> str:
    """A path without the folder that it starts with."""
    return path[len(folder) :].lstrip(os.sep) if folder else path


def in_words(error: Exception) -> str:
    """An exception in one line."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())


def colours_of(palette: Any, number: int) -> list[Sequence[int]]:
    """A palette of this many colours, each RGB from 0 to 255, or bright colours of ours if it is none."""
    if isinstance(palette, list | tuple) and len(palette) >= number and all(len(each) == 3 for each in palette):
        return list(palette[:number])
    return hues(number)


def hues(number: int) -> list[Sequence[int]]:
    """Bright colours; neighbours differ by the golden angle, so that any few of them are far apart."""
    return [[round(255 * part) for part in hls_to_rgb(0.02 + 0.618034 * i, 0.55, 0.9)] for i in range(number)]


def css(colour: Sequence[int]) -> str:
    return f'rgb({",".join(str(int(part)) for part in colour)})'
