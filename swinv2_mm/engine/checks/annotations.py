"""Check data sets without reading their data: COCO annotation files have the classes of the config.

MMDetection looks up the classes in the file by name and numbers those that it finds in the order of the file. A class
that is missing, or elsewhere, silently shifts the labels behind it; if none is found, nothing is learned.
"""

import json
import re
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from copy import deepcopy
from io import StringIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import check_arguments, find_class, with_key
from swinv2_mm.engine.config.parts import datasets_of, is_local
from swinv2_mm.errors import UserError, listed

# A larger file is not parsed here, since the data set will parse it: COCO's own (450 MB) takes a quarter of a minute.
_PARSED = 32 * 2**20
# What a data set reads of each entry.
_NEEDED = {
    'images': ('id', 'file_name', 'height', 'width'),
    'annotations': ('id', 'image_id', 'category_id', 'bbox', 'area'),
    'categories': ('id', 'name'),
}
_WANTED = "Expected is COCO's format for object instances: an object with the lists images, annotations, categories."


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
            if not path or (is_local(path) and Path(path).exists()):
                dataset.serialize_data = False
                with redirect_stdout(StringIO()), suppress(Exception):  # the run itself says what is wrong
                    dataset.full_init()
                    context.datasets[key] = dataset


def _reads_coco(kind: Any) -> bool:
    if not kind.__module__.startswith('mmdet'):
        return False
    from mmdet.datasets import CocoDataset as Coco

    return issubclass(kind, Coco) and kind.load_data_list is Coco.load_data_list and kind.COCOAPI is Coco.COCOAPI


def check_annotations(path: Path, classes: Sequence[str], key: str) -> None:
    """Check that a file is in COCO's format and has these classes in this order; ``key`` is that of the data set."""
    where = f'{key}: {path}'
    try:
        small = path.stat().st_size <= _PARSED
        content = _content(path, where) if small else {'categories': _categories(path, where)}
    except OSError as error:
        raise UserError(f'{key}: annotations {path} cannot be read: {error.strerror or error}.') from error
    _check_entries(content, where)
    names = [category['name'] for category in content['categories']]
    known = [name for name in names if name in classes]
    missing = [name for name in classes if name not in names]
    if not known:
        fault = f'none of the classes of the config ({listed(classes)}) is in it'
    elif missing:
        fault = f'{listed(missing)} is not in it; this would shift the labels of the classes behind'
    elif known != list(classes):
        fault = (
            f'it has the classes in another order ({listed(known)}) than the config ({listed(classes)}); labels follow '
            'the file, so their names would be wrong'
        )
    else:
        return
    raise UserError(
        f'{where}: {fault}. Set {key}.metainfo.classes to names of this file, in its order: {listed(names, 20)}.'
    )


def _content(path: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f'{where} is no JSON file, or is corrupt: {error}. {_WANTED}') from error
    if not isinstance(content, dict):
        raise UserError(f'{where} holds a {type(content).__name__}, no COCO annotations. {_WANTED}')
    content.setdefault('annotations', [])  # a test set without ground truth has none
    return {part: content.get(part) for part in _NEEDED}


def _categories(path: Path, where: str) -> Any:
    """Find the categories of a file that is too large to parse twice."""
    with path.open('rb') as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        if not content[:64].lstrip().startswith(b'{') or not content[-64:].rstrip().endswith(b'}'):
            raise UserError(f'{where} is no JSON object, or is corrupt. {_WANTED}')
        at = content.rfind(b'"categories"')
        text = content[at : at + _PARSED].decode(errors='replace') if at >= 0 else 'null'
    try:
        return json.JSONDecoder().raw_decode(re.sub(r'"categories"\s*:?\s*', '', text, count=1))[0]
    except ValueError as error:
        raise UserError(f'{where}: its categories cannot be read: {error}. {_WANTED}') from error


def _check_entries(content: dict[str, Any], where: str) -> None:
    """Check that each part is a list of entries, that these have what a data set reads, and that their ids match."""
    for part, entries in content.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise UserError(f'{where} has no list of {part}. {_WANTED}')
        for index, entry in enumerate(entries):
            lacks = [name for name in _NEEDED[part] if name not in entry]
            if lacks:
                kind = ' It is a panoptic file; those of object instances are called instances_*.json.'
                raise UserError(
                    f'{where}: {part}[{index}] has no {" and no ".join(lacks)}.'
                    f'{kind if "segments_info" in entry else ""} {_WANTED}'
                )
    if not content.get('images', True):
        raise UserError(f'{where} lists no images.')
    annotations = content.get('annotations') or []
    for part, name in ('images', 'image_id'), ('categories', 'category_id'):
        ids = {entry['id'] for entry in content.get(part, ())}
        if annotations and not any(annotation[name] in ids for annotation in annotations):
            raise UserError(
                f'{where}: {name} of no annotation is the id of one of its {part}; for example, {name}='
                f'{annotations[0][name]!r} is not. Ids are whole numbers in both.'
            )
