"""Check data sets without reading their data: COCO annotation files have the classes of the config.

MMDetection looks up the classes in the file by name and numbers those that it finds in the order of the file. A class
that is missing, or elsewhere, silently shifts the labels behind it; if none is found, nothing is learned.
"""

import json
import re
from collections.abc import Sequence
from copy import deepcopy
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import check_arguments, find_class, with_key
from swinv2_mm.engine.checks.paths import datasets_of, is_local
from swinv2_mm.errors import UserError, listed

# A larger file is not parsed here, since the data set will parse it: COCO's own (450 MB) takes a quarter of a minute.
_PARSED = 32 * 2**20


def check_datasets(cfg: Config, context: Context) -> None:
    """Build each data set without its data, note its classes, and check its annotation file against them."""
    for split in context.splits:
        for key, config in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            kind = find_class(config, key, DATASETS)
            own = isinstance(kind, type) and issubclass(kind, BaseDataset)
            if not own or kind.__module__.split('.')[0] not in ('mmengine', 'mmdet', 'mmseg'):
                check_arguments(config, key, DATASETS)  # a foreign class may read its data when it is built
                continue
            with with_key(config, key):
                dataset = DATASETS.build(dict(deepcopy(config), lazy_init=True))
            classes = dataset.metainfo.get('classes')
            if isinstance(classes, str):
                raise UserError(
                    f'{key}.metainfo.classes={classes!r} must be a list of names; for one class, ({classes!r},).'
                )
            if not classes:
                continue
            context.classes[key] = classes
            path = dataset.ann_file
            if _reads_coco(kind) and path and is_local(path) and Path(path).exists():
                check_annotations(Path(path), classes, key)


def _reads_coco(kind: type) -> bool:
    if not kind.__module__.startswith('mmdet'):
        return False
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO

    own = issubclass(kind, CocoDataset) and kind.load_data_list is CocoDataset.load_data_list
    return own and kind.COCOAPI is COCO


def check_annotations(path: Path, classes: Sequence[str], key: str) -> None:
    """Check that a file is in COCO's format and has these classes in this order; ``key`` is that of the data set."""
    try:
        small = path.stat().st_size <= _PARSED
        categories = _checked(path, key) if small else _searched(path, key)
    except OSError as error:
        raise UserError(f'{key}: annotations {path} cannot be read: {error.strerror or error}.') from error
    names = [category['name'] for category in categories]
    known = [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    own = f'{key}.metainfo.classes'
    remedy = f'Set {own} to names of this file, in its order: {listed(names, 20)}.'
    if not known:
        raise UserError(f'{key}: none of the classes of the config ({listed(classes)}) is in {path}. {remedy}')
    if missing:
        raise UserError(
            f'{key}: of the classes of the config {listed(missing)} {"is" if len(missing) == 1 else "are"} not in '
            f'{path}; this would shift the labels of the classes behind. {remedy}'
        )
    if known != list(classes):
        raise UserError(
            f'{key}: {path} has the classes in another order ({listed(known)}) than the config ({listed(classes)}); '
            f'labels follow the file, so their names would be wrong. {remedy}'
        )


def _checked(path: Path, key: str) -> list[dict]:
    """Parse a file, check what a data set reads of it, and return its categories."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f'{key}: {path} is no JSON file, or is corrupt: {error}. {_WANTED}') from error
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
            f'{key}: {path}: no annotation belongs to an image of the file; for example, image_id='
            f'{annotations[0]["image_id"]!r} is the id of none.'
        )
    ids = {category['id'] for category in categories}
    strays = {repr(annotation['category_id']) for annotation in annotations if annotation['category_id'] not in ids}
    if strays and not any(annotation['category_id'] in ids for annotation in annotations):
        raise UserError(
            f'{key}: {path}: annotations of category_id {listed(sorted(strays))}, which is the id of no category. '
            'Ids are whole numbers in both.'
        )
    return categories


def _searched(path: Path, key: str) -> list[dict]:
    """Find the categories of a file that is too large to parse twice."""
    with path.open('rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if not content[:64].lstrip().startswith(b'{') or not content[-64:].rstrip().endswith(b'}'):
            raise UserError(f'{key}: {path} is no JSON object, or is corrupt. {_WANTED}')
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


_WANTED = "Expected is COCO's format for object instances: an object with the lists images, annotations, categories."
