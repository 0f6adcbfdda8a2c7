"""COCO annotation files: their form, and which of their objects MMDetection leaves out."""

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from swinv2_mm.errors import UserError, listed

_WANTED = "Expected is COCO's format for object instances: an object with the lists images, annotations, categories."


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _id(value: object) -> bool:
    return _whole(value) or isinstance(value, str)


def _box(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 4 and all(_number(number) for number in value)


def _side(value: object) -> bool:
    return _number(value) and value > 0


# What a data set reads of each entry, and what it must be.
_NEEDED: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    'images': {
        'id': (_id, 'a whole number'),
        'file_name': (lambda name: isinstance(name, str) and name != '', 'a path'),
        'height': (_side, 'a number of pixels'),
        'width': (_side, 'a number of pixels'),
    },
    'annotations': {
        'id': (_whole, 'a whole number'),
        'image_id': (_id, 'a whole number'),
        'category_id': (_id, 'a whole number'),
        'bbox': (_box, 'four numbers, [x, y, width, height] in pixels'),
        'area': (_number, 'a number of pixels'),
    },
    'categories': {'id': (_id, 'a whole number'), 'name': (lambda name: isinstance(name, str), 'text')},
}


def read_coco(path: Path, where: str) -> dict[str, Any]:
    """Read a COCO file for object instances, and check that MMDetection can use it.

    Args:
        where: The data set and the file, to begin a message with.

    Returns:
        The lists ``images``, ``annotations`` (empty in a test set without ground truth) and ``categories``.

    Raises:
        UserError: It is no such file, an entry lacks something or has it in another type, or ids clash.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f'{where} cannot be read: {error.strerror or error}.') from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f'{where} is no JSON file, or is corrupt: {error}. {_WANTED}') from error
    if not isinstance(content, dict):
        raise UserError(f'{where} holds a {type(content).__name__}, no COCO annotations. {_WANTED}')
    content.setdefault('annotations', [])
    for part in _NEEDED:
        _check_entries(content.get(part), part, where)
    if not content['images']:
        raise UserError(f'{where} lists no images.')
    for part, entries in ((part, content[part]) for part in _NEEDED):
        _check_unique(entries, part, where)
    _check_references(content, 'images', 'image_id', where)
    _check_references(content, 'categories', 'category_id', where)
    return {part: content[part] for part in _NEEDED}


def _check_entries(entries: Any, part: str, where: str) -> None:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f'{where} has no list of {part}. {_WANTED}')
    needed = _NEEDED[part]
    for index, entry in enumerate(entries):
        for name, (good, kind) in needed.items():
            if name not in entry:
                lacks = [name for name in needed if name not in entry]
                panoptic = ' It is a panoptic file; those of object instances are called instances_*.json.'
                raise UserError(
                    f'{where}: {part}[{index}] has no {" and no ".join(lacks)}.'
                    f'{panoptic if "segments_info" in entry else ""} {_WANTED}'
                )
            if not good(entry[name]):
                raise UserError(
                    f'{where}: {name} of {part}[{index}] is {entry[name]!r}; it must be {kind}. Correct it in the '
                    'file, or take the entry out.'
                )


def _check_unique(entries: list[dict], part: str, where: str) -> None:
    counts = Counter(entry['id'] for entry in entries)
    if len(counts) == len(entries):
        return
    twice = [number for number, count in counts.items() if count > 1]
    lost = len(entries) - len(counts)
    names = [entry.get('file_name', entry.get('name', '')) for entry in entries if entry['id'] == twice[0]]
    example = f' ({listed(names)})' if any(names) else ''
    raise UserError(
        f'{where}: {lost} of {len(entries)} {part} have the id of another, such as {twice[0]!r}{example}. Only the '
        'last of each id would be used, with what belongs to the others. Give each an id of its own; files '
        'that were joined need new ids, in image_id and category_id too.'
    )


def _check_references(content: dict, part: str, name: str, where: str) -> None:
    """Refuse references of another type than the ids, and a file in which none fits; single strays are counted."""
    ids = {entry['id'] for entry in content[part]}
    strays = [annotation[name] for annotation in content['annotations'] if annotation[name] not in ids]
    if not strays:
        return
    texts = {str(number) for number in ids}
    alike = sum(str(stray) in texts for stray in strays)
    if alike:
        raise UserError(
            f'{where}: {name} of {alike} annotations is of another type than the id of the {part}, such as '
            f'{next(stray for stray in strays if str(stray) in texts)!r}: their objects would be lost. Write whole '
            'numbers, without quotes, in both.'
        )
    if len(strays) == len(content['annotations']):
        raise UserError(
            f'{where}: {name} of no annotation is the id of one of its {part}; for example, {name}={strays[0]!r} is '
            'not. Ids are whole numbers in both.'
        )


def check_masks(content: dict, where: str, complete: bool) -> None:
    """Check the form of masks, which MMDetection would ignore or fail on.

    Args:
        complete: Whether every object needs a mask; else those without one are counted only.

    Raises:
        UserError: Polygons are nested wrongly, or a mask is missing.
    """
    for index, annotation in enumerate(content['annotations']):
        mask, whose = annotation.get('segmentation'), f'segmentation of annotations[{index}]'
        if not mask:
            if complete and not annotation.get('iscrowd') and not annotation.get('ignore'):
                raise UserError(
                    f'{where}: annotations[{index}] has no segmentation, and the config trains masks. Add it, take the '
                    'object out, or train boxes alone: a config without a mask head, and with_mask=False.'
                )
            continue
        fault = _nesting(mask)
        if fault:
            raise UserError(
                f'{where}: {whose} is {fault}; COCO wants a list of polygons, each one list of numbers: '
                '[[x1, y1, x2, y2, x3, y3, …], …]. Convert it in all annotations.'
            )


def _nesting(mask: Any) -> str:
    """What is wrong with the nesting of polygons."""
    if not isinstance(mask, list):
        return '' if isinstance(mask, dict) else f'a {type(mask).__name__}'
    if any(_number(polygon) for polygon in mask):
        return 'one flat list of numbers'
    if not all(isinstance(polygon, list) for polygon in mask):
        return f'a list of {type(next(polygon for polygon in mask if not isinstance(polygon, list))).__name__}'
    if any(polygon and isinstance(polygon[0], list) for polygon in mask) or all(len(polygon) == 2 for polygon in mask):
        return 'made of points [x, y]'
    return ''


def check_evaluated(content: dict, where: str, path: str) -> None:
    """Refuse an annotation with id 0 in a file that pycocotools evaluates: it takes 0 for "no match"."""
    index = next((index for index, entry in enumerate(content['annotations']) if entry['id'] == 0), None)
    if index is not None:
        raise UserError(
            f'{where}: annotations[{index}] has the id 0, which pycocotools takes for no object: a box that finds it '
            'would count as false, and the metrics would be too low. Count ids from 1: '
            f'python -c "import json; p = {path!r}; d = json.load(open(p)); '
            "[a.update(id=i) for i, a in enumerate(d['annotations'], 1)]; json.dump(d, open(p, 'w'))\""
        )


# Why MMDetection leaves an object out, in its order, and what to do about it if there is something to do.
REASONS = {
    'no picture of that id': 'take these annotations out, or add their images',
    'marked ignore': 'remove "ignore" from objects that count',
    'outside of the picture': 'bbox is [x, y, width, height] in pixels of the image',
    'area 0': 'write the area of the object, for a box its width times its height',
    'narrower than a pixel': 'bbox is [x, y, width, height] in pixels, not in shares of the image',
    'category not in the file': 'add the category, or correct category_id',
    'another class': 'name it in metainfo.classes',
    'crowd': 'set iscrowd=0 for single objects; exports with brush or RLE masks often have 1',
    'mask without three corners': 'a polygon has six numbers at least',
    'mask as RLE, and poly2mask=False': 'set poly2mask=True in LoadAnnotations, or write polygons',
}


def left_out(content: dict, classes: Sequence[str], masks: dict | None = None) -> Counter[str]:
    """Count the objects that MMDetection's ``CocoDataset`` and ``LoadAnnotations`` leave out, by ``REASONS``.

    Args:
        masks: The transform that loads masks; None if none does.
    """
    images = {image['id']: (image['width'], image['height']) for image in content['images']}
    names = {category['id']: category['name'] for category in content['categories']}
    wanted = {number for number, name in names.items() if name in classes}
    counts: Counter[str] = Counter()
    for annotation in content['annotations']:
        reason = _reason(annotation, images.get(annotation['image_id']), names, wanted)
        if reason is None and masks is not None:
            reason = mask_reason(annotation.get('segmentation'), masks)
        if reason:
            counts[reason] += 1
    return counts


def _reason(annotation: dict, size: tuple | None, names: dict, wanted: set[Hashable]) -> str | None:
    if size is None:
        return 'no picture of that id'
    if annotation.get('ignore'):
        return 'marked ignore'
    x, y, width, height = annotation['bbox']
    inside = max(0, min(x + width, size[0]) - max(x, 0)) * max(0, min(y + height, size[1]) - max(y, 0))
    if width < 1 or height < 1:
        return 'narrower than a pixel'
    if inside == 0 or math.isnan(inside):
        return 'outside of the picture'
    if annotation['area'] <= 0:
        return 'area 0'
    if annotation['category_id'] not in wanted:
        return 'another class' if annotation['category_id'] in names else 'category not in the file'
    return 'crowd' if annotation.get('iscrowd') else None


def mask_reason(mask: Any, loading: dict) -> str | None:
    """Why the transform ``loading`` ignores a mask, if it does."""
    if isinstance(mask, list):
        usable = any(len(polygon) % 2 == 0 and len(polygon) >= 6 for polygon in mask)
        return None if usable else 'mask without three corners'
    polygons = not loading.get('poly2mask', True)
    return 'mask as RLE, and poly2mask=False' if isinstance(mask, dict) and polygons else None


def beyond(content: dict) -> int:
    """How many boxes end outside of their picture by more than two pixels, as ``[x1, y1, x2, y2]`` mostly do."""
    images = {image['id']: (image['width'] + 2, image['height'] + 2) for image in content['images']}
    count = 0
    for annotation in content['annotations']:
        x, y, width, height = annotation['bbox']
        right, bottom = images.get(annotation['image_id'], (math.inf, math.inf))
        count += x + width > right or y + height > bottom
    return count


def repeated_files(content: dict) -> list[str]:
    """Image files that are listed more than once."""
    return [name for name, count in Counter(image['file_name'] for image in content['images']).items() if count > 1]


def use_content(dataset: Any, content: dict) -> None:
    """Make a ``CocoDataset`` that has not been loaded take its annotations from here instead of parsing its file."""
    kind = dataset.COCOAPI

    def index(path: str) -> Any:
        api = kind()
        api.dataset = content
        api.createIndex()
        api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
        return api

    dataset.COCOAPI = index
