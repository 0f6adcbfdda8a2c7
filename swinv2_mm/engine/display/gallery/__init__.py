"""Pages of pictures to look at: one HTML file each, which needs no network and no server."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.engine.display.gallery.outlines import jpeg, outline, overlay
from swinv2_mm.engine.display.gallery.page import choose, colours_of, css, in_words, within, write_gallery
from swinv2_mm.errors import UserError

_MOST = 300  # pictures of a page


def write_prediction_page(out_dir: str | os.PathLike) -> Path:
    """Write ``report.html`` into a folder of predictions: a gallery with filters by class and score.

    Args:
        out_dir: The folder, with ``predictions.json`` and the files that it names. Where an entry has the path of its
            own image as ``source``, relative to the folder or absolute, predictions are drawn over that in the
            browser; else the page shows ``picture``, which already has them.

    Returns:
        The page. It shows at most 300 pictures and 32 MB of them, evenly spaced with some of each class, and says what
        it leaves out.

    Raises:
        UserError: There is no such file, or it is none of ours.
        OSError: The page cannot be written.
    """
    folder = Path(out_dir)
    try:
        found = json.loads(folder.joinpath('predictions.json').read_text(encoding='utf-8'))
        classes, entries = [str(name) for name in found['classes']], list(found['images'])
        labels = [_labels(entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{folder / "predictions.json"} cannot be read ({in_words(error)}); tools/predict.py writes it.'
        ) from None
    colours = colours_of(found.get('palette'), len(classes))
    chosen = [entries[index] for index in choose(labels, _MOST)]
    pictures = within([_entry(folder, entry, classes, colours) for entry in chosen])
    content = {
        'datasets': [
            {
                'name': str(found.get('task', '')),
                'number': len(entries),
                'classes': classes,
                'colours': [css(colour) for colour in colours],
            }
        ],
        'pictures': pictures,
        'slider': True,
    }
    if len(pictures) < len(entries):
        content['note'] = (
            f'This page has {len(pictures)} of {len(entries)} pictures, some with each class and the others evenly '
            'spaced, so that a browser can open it. predictions.json has all.'
        )
    page = folder / 'report.html'
    write_gallery(page, f'Predictions in {folder.resolve().name}', content)
    return page


def _labels(entry: dict) -> set[int]:
    return {*(int(one['label']) for one in entry.get('predictions') or ()), *map(int, entry.get('pixels') or ())}


def _entry(folder: Path, entry: dict, classes: list[str], colours: list) -> dict:
    """What the page knows of one picture; in the place of what cannot be read, ``faults`` say why."""
    name = str(entry['file']) + (f', frame {entry["frame"]}' if 'frame' in entry else '')
    shown: dict[str, Any] = {'d': 0, 'path': name, 'name': name, 'faults': []}
    shown['objects'] = [_object(one, entry, shown['faults']) for one in entry.get('predictions') or ()]
    pixels = {int(label): count for label, count in (entry.get('pixels') or {}).items()}
    if pixels:
        shares = sorted(((label, count / sum(pixels.values())) for label, count in pixels.items()), key=lambda x: -x[1])
        shown['shares'] = [
            [classes[label], share, css(colours[label])] for label, share in shares if 0 <= label < len(classes)
        ]
    try:
        file = entry.get('source') or entry.get('picture')
        if file is None:
            raise ValueError('its picture was not kept')
        picture = _read(folder / file)
        shown |= {'w': entry['width'], 'h': entry['height'], 'src': jpeg(picture)}
        shown['drawn'] = 'source' not in entry
        if entry.get('map') and not shown['drawn']:
            shown['maps'] = {'labels': overlay(_read(folder / entry['map'], as_labels=True), colours)}
    except Exception as error:  # of files and decoders
        shown['faults'].append(in_words(error))
    return shown


def _object(prediction: dict, entry: dict, faults: list[str]) -> dict:
    shown: dict[str, Any] = {'c': int(prediction['label'])}
    if prediction.get('score') is not None:
        shown['s'] = round(float(prediction['score']), 3)
    if prediction.get('bbox') is not None:
        x, y, width, height = prediction['bbox']
        shown['b'] = [round(float(each), 1) for each in (x, y, x + width, y + height)]
    if prediction.get('segmentation'):
        try:
            shown['p'] = outline(prediction['segmentation'], entry['height'], entry['width'])
        except Exception as error:  # whatever a wrong mask causes in pycocotools
            faults.append(f'a mask cannot be read ({error})')
    return shown


def _read(path: Path, as_labels: bool = False) -> np.ndarray:
    """A picture as RGB, turned as its EXIF says, perhaps reduced; or a map as the indices in its file."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        if as_labels:
            return np.asarray(image)
        image.draft('RGB', (1280, 1280))  # JPEG files are decoded at a fraction of their size
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
