"""Write small data sets of one kind each: COCO files of boxes, semantic maps, and configs that read them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

CLASSES = ('bolt', 'nut')
SIDE = 64


def write_coco(folder: Path, edit: Callable[[dict], Any] | None = None, pictures: int = 4, images: bool = True) -> Path:
    """Pictures with one box of each class; ``edit`` changes the annotations. Returns the annotation file."""
    content: dict[str, list] = {
        'images': [],
        'annotations': [],
        'categories': [{'id': label + 1, 'name': name} for label, name in enumerate(CLASSES)],
    }
    (folder / 'img').mkdir(parents=True, exist_ok=True)
    for index in range(1, pictures + 1):
        picture = np.full((SIDE, SIDE, 3), 40, np.uint8)
        content['images'].append({'id': index, 'file_name': f'{index:04d}.png', 'height': SIDE, 'width': SIDE})
        for label in range(len(CLASSES)):
            x, y, width, height = 4 + 28 * label, 8, 18, 22
            picture[y : y + height, x : x + width] = (250, 60, 60) if label else (60, 60, 250)
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': index,
                    'category_id': label + 1,
                    'bbox': [x, y, width, height],
                    'area': width * height,
                    'iscrowd': 0,
                    'segmentation': [[x, y, x + width, y, x + width, y + height, x, y + height]],
                }
            )
        if images:
            cv2.imwrite(str(folder / 'img' / f'{index:04d}.png'), picture)
    if edit:
        edit(content)
    path = folder / 'coco.json'
    path.write_text(json.dumps(content))
    return path


def of_each(change: Callable[[dict], Any]) -> Callable[[dict], None]:
    """An edit of every annotation."""

    def edit(content: dict) -> None:
        for annotation in content['annotations']:
            change(annotation)

    return edit


def coco_loader(folder: Path, masks: bool = True, **dataset: Any) -> dict:
    """The part ``dataset`` of a data loader that reads what :func:`write_coco` wrote."""
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': masks}]
    settings = {'ann_file': 'coco.json', 'data_prefix': {'img': 'img/'}, 'metainfo': {'classes': CLASSES}}
    common = {'type': 'CocoDataset', 'data_root': str(folder), 'pipeline': pipeline}
    return {'dataset': {**common, **settings, **dataset}}


def write_maps(folder: Path, labels: np.ndarray, number: int = 4) -> None:
    """Grey pictures, and the same map for each."""
    for name in ('img', 'map'):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(number):
        cv2.imwrite(str(folder / 'img' / f'{index}.png'), np.full((*labels.shape[:2], 3), 90, np.uint8))
        cv2.imwrite(str(folder / 'map' / f'{index}.png'), labels)


def map_loader(folder: Path, classes: tuple[str, ...] = ('ground', 'leaf'), **dataset: Any) -> dict:
    """The part ``dataset`` of a data loader that reads what :func:`write_maps` wrote."""
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
    settings = {'img_suffix': '.png', 'data_prefix': {'img_path': 'img', 'seg_map_path': 'map'}}
    common = {'type': 'BaseSegDataset', 'data_root': str(folder), 'metainfo': {'classes': classes}}
    return {'dataset': {**common, 'pipeline': pipeline, **settings, **dataset}}


def config_of(**parts: Any) -> Config:
    """A config of nothing but these parts, and a head of as many classes as it takes."""
    return Config(dict(model={}, **parts))
