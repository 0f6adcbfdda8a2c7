"""Write tiny data sets: COCO with COCO-Stuff, ADE20K and the shapes, in the folders that the configs expect."""

import json
from pathlib import Path

import cv2
import numpy as np

from swinv2_mm.datasets import ShapesSpec, write_shapes

SIDE = 64
IMAGES = 2  # per split


def write_data(folder: Path) -> Path:
    """Write ``data/coco``, ``data/ade`` and ``data/shapes`` into a folder, and return ``data``."""
    data = folder / 'data'
    for split in ('train2017', 'val2017'):
        write_coco(data / 'coco', split)
    for split in ('training', 'validation'):
        write_ade(data / 'ade' / 'ADEChallengeData2016', split)
    write_shapes(ShapesSpec(size=SIDE, num_train=IMAGES, num_val=IMAGES), data / 'shapes')
    return data


def write_coco(folder: Path, split: str) -> None:
    """Images with two rectangles each, as polygons, and maps of COCO-Stuff; categories are all of COCO's."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    content = {
        'images': [],
        'annotations': [],
        'categories': [{'id': number, 'name': name} for number, name in enumerate(names, start=1)],
    }
    for index in range(IMAGES):
        name, labels = f'{index:012d}', (index, len(names) - 1)
        image, stuff = noise(index), np.full((SIDE, SIDE), 120, np.uint8)
        content['images'].append({'id': index, 'file_name': f'{name}.jpg', 'height': SIDE, 'width': SIDE})
        for label, (x, y, w, h) in zip(labels, ((4, 6, 24, 30), (30, 20, 30, 36)), strict=True):
            image[y : y + h, x : x + w] = label * 3, 250 - label * 3, 90
            stuff[y : y + h, x : x + w] = label
            content['annotations'].append(
                {
                    'id': len(content['annotations']) + 1,
                    'image_id': index,
                    'category_id': label + 1,
                    'iscrowd': 0,
                    'bbox': [x, y, w, h],
                    'area': w * h,
                    'segmentation': [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        write_image(folder / split / f'{name}.jpg', image)
        write_image(folder / 'stuffthingmaps' / split / f'{name}.png', stuff)
    (folder / 'annotations').mkdir(exist_ok=True)
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def write_ade(folder: Path, split: str) -> None:
    """Images in two halves, and maps of them: 0 is no class, 150 the last one."""
    for index in range(IMAGES):
        image, labels = noise(index), np.zeros((SIDE, SIDE), np.uint8)
        image[:, : SIDE // 2] //= 3
        labels[8:, : SIDE // 2] = index + 1
        labels[8:, SIDE // 2 :] = 150
        write_image(folder / 'images' / split / f'ADE_{index}.jpg', image)
        write_image(folder / 'annotations' / split / f'ADE_{index}.png', labels)


def images(*paths: str, **keys: object) -> object:
    """A data set of mmengine with these images, which a ``pipeline`` among the keys may load in another way."""
    from mmengine.dataset import BaseDataset

    class Images(BaseDataset):
        def load_data_list(self) -> list[dict]:
            return [{'img_path': path, 'sample': index} for index, path in enumerate(paths)]

    return Images(**({'pipeline': [{'type': 'mmcv.LoadImageFromFile'}]} | keys))


def noise(seed: int) -> np.ndarray:
    """An image of random colours, uint8, ``(SIDE, SIDE, 3)``."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def write_image(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
