"""COCO annotation files: that they are such, and that their categories are the classes of the config.

MMDetection looks the classes up in the file by name and numbers those that it finds in the order of the file: one that
is missing, or elsewhere, silently shifts the labels of those behind it, and where none is found nothing is learned.
"""

import json
import re
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from swinv2_mm.errors import UserError

# A larger file is not parsed, since the data set will do that: of COCO's own (450 MB) it takes a quarter of a minute.
_PARSED = 32 * 2**20


def check_annotations(path: Path, classes: Sequence[str], key: str) -> None:
    """Check an annotation file against the classes that it is to have.

    Args:
        path: The file.
        classes: Their names, in the order of their labels.
        key: The data set in the config.

    Raises:
        UserError: It is no COCO file of object instances, or has other classes, or orders them otherwise.
    """
    try:
        small = path.stat().st_size <= _PARSED
        categories = _checked(path, key) if small else _searched(path, key)
    except OSError as error:
        raise UserError(f'{key}: annotations {path} cannot be read: {error.strerror or error}.') from error
    names = [category['name'] for category in categories]
    known = [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    own = f'{key}.metainfo.classes'
    remedy = f'Set {own} to names of this file, in its order: {_listed(names, 20)}.'
    if not known:
        raise UserError(f'{key}: none of the classes of the config ({_listed(classes)}) is in {path}. {remedy}')
    if missing:
        raise UserError(
            f'{key}: of the classes of the config {_listed(missing)} {"is" if len(missing) == 1 else "are"} not in '
            f'{path}; the labels of those behind would be shifted. {remedy}'
        )
    if known != list(classes):
        raise UserError(
            f'{key}: {path} has the classes in another order ({_listed(known)}) than the config ({_listed(classes)}); '
            f'labels follow the file, so that their names would be wrong. {remedy}'
        )


def _checked(path: Path, key: str) -> list[dict]:
    """Parse a file and check what a data set reads of it; its categories."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f'{key}: {path} is no JSON file, or a damaged one: {error}. {_WANTED}') from error
    if not isinstance(content, dict):
        raise UserError(f'{key}: {path} holds a {type(content).__name__}, no COCO annotations. {_WANTED}')
    content.setdefault('annotations', [])  # a test set without ground truth has none
    parts = ('images', 'annotations', 'categories')
    absent = [part for part in parts if not _dicts(content.get(part))]
    if absent:
        raise UserError(f'{key}: {path} has no list of {" and none of ".join(absent)}. {_WANTED}')
    images, annotations, categories = (content[part] for part in parts)
    _check_categories(categories, path, key)
    for part, entries, names in (
        ('images', images, ('id', 'file_name', 'height', 'width')),
        ('annotations', annotations, ('id', 'image_id', 'category_id', 'bbox', 'area')),
    ):
        for index, entry in enumerate(entries):
            lacks = [name for name in names if name not in entry]
            if lacks:
                kind = ' It is a panoptic file; those of object instances are called instances_*.json.'
                raise UserError(
                    f'{key}: {path}: {part}[{index}] has no {" and no ".join(lacks)}.'
                    f'{kind if "segments_info" in entry else ""} {_WANTED}'
                )
    images_there = {str(image['id']) for image in images}
    if not images:
        raise UserError(f'{key}: {path} lists no images.')
    if annotations and not any(str(annotation['image_id']) in images_there for annotation in annotations):
        raise UserError(
            f'{key}: {path}: no annotation belongs to an image of the file: image_id={annotations[0]["image_id"]!r} '
            f'and the like are the id of none.'
        )
    ids = {category['id'] for category in categories}
    strays = {repr(annotation['category_id']) for annotation in annotations if annotation['category_id'] not in ids}
    if strays and not any(annotation['category_id'] in ids for annotation in annotations):
        raise UserError(
            f'{key}: {path}: annotations of category_id {_listed(sorted(strays))}, which is the id of no category. '
            'Ids are whole numbers in both.'
        )
    return categories


def _searched(path: Path, key: str) -> list[dict]:
    """The categories of a file that is too large to be parsed twice."""
    with path.open('rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if not content[:64].lstrip().startswith(b'{') or not content[-64:].rstrip().endswith(b'}'):
            raise UserError(f'{key}: {path} is no JSON object, or a damaged one. {_WANTED}')
        at = content.rfind(b'"categories"')
        if at < 0:
            raise UserError(f'{key}: {path} has no list of categories. {_WANTED}')
        text = content[at : at + _PARSED].decode(errors='replace')
    text = text[re.match(r'"categories"\s*:?\s*', text).end() :]
    try:
        categories = json.JSONDecoder().raw_decode(text)[0]
    except ValueError as error:
        raise UserError(f'{key}: {path}: its categories cannot be read: {error}. {_WANTED}') from error
    if not _dicts(categories):
        raise UserError(f'{key}: {path} has no list of categories. {_WANTED}')
    _check_categories(categories, path, key)
    return categories


def _check_categories(categories: list[dict], path: Path, key: str) -> None:
    for index, category in enumerate(categories):
        if 'name' not in category or not isinstance(category.get('id'), int):
            raise UserError(f'{key}: {path}: categories[{index}]={category!r} needs a name and an id, a whole number.')


def _dicts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ', '.join(map(str, names[:most])) + (f' and {len(names) - most} more' if len(names) > most else '')


_WANTED = "Expected is COCO's format for object instances: an object with the lists images, annotations, categories."
