"""Fonts for the class names in pictures: installed ones that have the characters which matplotlib's own font lacks."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from swinv2_mm.engine.mmengine_internals import set_label_drawing

_REMEDY = 'apt install fonts-noto-cjk (Chinese, Japanese, Korean) or fonts-noto (all others)'
# They have an empty box for every character.
_PLACEHOLDERS = ('last resort', 'lastresort', 'adobe blank', 'unicode bmp fallback')


def use_fonts_for(visualizer: Any, names: Iterable[str]) -> str:
    """Make a visualizer of mmengine draw these class names, in fonts that have all of their characters.

    OpenCV, which labels MMSegmentation's pictures, has only the characters of ASCII; then matplotlib labels them.
    Nothing is changed where the default fonts suffice.

    Returns:
        A warning about characters that no installed font has, or an empty string.
    """
    characters = {each for each in ''.join(map(str, names)) if each.isprintable() and not each.isspace()}
    if all(each.isascii() for each in characters):
        return ''
    families, lacking = fonts_for(characters)
    draw = visualizer.draw_texts

    def draw_texts(texts: Any, *args: Any, **kwargs: Any) -> Any:
        number = 1 if isinstance(texts, str) else len(texts)
        return draw(texts, *args, **{'font_families': [families] * number, **kwargs})

    if len(families) > 1:
        visualizer.draw_texts = draw_texts
    set_label_drawing(visualizer, partial(label_areas, visualizer))
    if not lacking:
        return ''
    return (
        f'no installed font has {"".join(sorted(lacking))} of the class names: pictures have empty boxes in their '
        f'place. Install one, as by {_REMEDY}.'
    )


def fonts_for(characters: Iterable[str]) -> tuple[list[str], set[str]]:
    """Choose font families, matplotlib's default first, that together have some characters.

    Returns:
        Their names, and the characters that no installed font has.
    """
    from matplotlib.font_manager import FontProperties, findfont

    default = findfont(FontProperties(family=['sans-serif']))
    families, lacking = [_family_of(default)], set(characters)
    lacking = {character for character in lacking if ord(character) not in _codes(default)}
    if lacking:
        has = {name: {c for c in lacking if ord(c) in codes} for name, codes in _installed()}
        while lacking:
            # The most characters; then sans-serif fonts, which are the easiest to read in pictures.
            best = max(has, key=lambda name: (len(has[name] & lacking), _is_plain(name), name), default=None)
            if best is None or not has[best] & lacking:
                break
            families.append(best)
            lacking -= has[best]
    return families, lacking


def _is_plain(name: str) -> bool:
    return 'sans' in name.lower() and 'mono' not in name.lower()


def _installed() -> Iterator[tuple[str, Any]]:
    """The installed families with the codes of their characters."""
    from matplotlib.font_manager import FontProperties, findfont, findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for path in findSystemFonts():
        if path not in known:  # matplotlib's list is a file that it wrote when it was first imported
            with _ignored():
                fontManager.addfont(path)
    for name in sorted({font.name for font in fontManager.ttflist}):
        if not name.lower().startswith(_PLACEHOLDERS):
            with _ignored():
                yield name, _codes(findfont(FontProperties(family=[name]), fallback_to_default=False))


@contextmanager
def _ignored() -> Iterator[None]:
    """Skip a font that cannot be read."""
    try:
        yield
    except (OSError, RuntimeError, ValueError, NotImplementedError):
        pass


def _codes(path: str) -> Any:
    from matplotlib.font_manager import get_font

    return get_font(path).get_charmap()


def _family_of(path: str) -> str:
    from matplotlib.font_manager import get_font

    return get_font(path).family_name


def label_areas(visualizer: Any, image: np.ndarray, sem_seg: Any, classes: Any, palette: Any) -> np.ndarray:
    """Write each class name of a semantic map where its area is the widest, for
    :func:`~swinv2_mm.engine.mmengine_internals.set_label_drawing`."""
    visualizer.set_image(image)
    labels = np.asarray(sem_seg.cpu().data)[0]
    for label in np.unique(labels[labels < len(classes)]):
        area = labels == label
        widths = area.sum(1)
        widest = np.flatnonzero(widths == widths.max())
        row = widest[len(widest) // 2]  # one of them: between two there may be no area
        columns = np.flatnonzero(area[row])
        box = {'facecolor': tuple(np.divide(palette[label], 255)), 'edgecolor': 'black', 'pad': 1}
        place = np.array([columns[len(columns) // 2], row])
        visualizer.draw_texts(classes[label], place, colors=(255, 255, 255), vertical_alignments='center', bboxes=box)
    return visualizer.get_image()


@contextmanager
def without_drawing_warnings() -> Iterator[None]:
    """Keep matplotlib from a warning for each character of each label, since the run has had its own, and mmengine from
    one for each object at a border."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph .* missing from')
        warnings.filterwarnings('ignore', message='.*is out of bounds, the drawn')
        yield
