"""Pages of pictures to look at: one HTML file each, which needs no network and no server."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.engine.display.gallery.outlines import jpeg, outline, overlay
from swinv2_mm.engine.display.gallery.page import choose, colours_of, css, in_words, within, write_gallery
from swinv2_mm.errors import UserError

_MOST = 300  # pictures of a page


def write_prediction_page(out_dir: str | os.PathLike, sources: Mapping[str, str] | None = None) -> Path:
    """Write ``report.html`` into a folder of predictions: a gallery with filters by class and score.

    Args:
        out_dir: The folder, with ``predictions.json`` and the files that it names.
        sources: The paths of the inputs, by the ``file`` of their entries. Over these the browser draws what is chosen;
            without one the page shows ``picture``, which has all predictions drawn on.

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
    pictures = within([_entry(folder, entry, sources or {}, classes, colours) for entry in chosen])
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


def _entry(folder: Path, entry: dict, sources: Mapping[str, str], classes: list[str], colours: list) -> dict:
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
        source = sources.get(entry['file'], '')
        shown['drawn'] = not os.path.isfile(source)
        if shown['drawn'] and entry.get('picture') is None:
            raise ValueError('its picture was not kept')
        picture = _read(folder / entry['picture'] if shown['drawn'] else Path(source), entry.get('frame'))
        shown |= {'w': entry['width'], 'h': entry['height'], 'src': jpeg(picture)}
        if entry.get('map') and not shown['drawn']:
            shown['maps'] = {'labels': overlay(_labels_in(folder / entry['map']), colours)}
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


def _read(path: Path, frame: int | None) -> np.ndarray:
    """A picture as RGB, turned as its EXIF says, perhaps reduced; or a frame of a video."""
    import cv2
    from PIL import Image, ImageOps

    if frame is not None:
        video = cv2.VideoCapture(str(path))
        video.set(cv2.CAP_PROP_POS_FRAMES, frame)
        some, image = video.read()
        video.release()
        if not some:
            raise ValueError(f'frame {frame} of {path} cannot be read')
        return image[..., ::-1]
    with Image.open(path) as image:
        image.draft('RGB', (1280, 1280))  # JPEG files are decoded at a fraction of their size
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


def _labels_in(path: Path) -> np.ndarray:
    """The class indices in a PNG file."""
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)
