"""Random pictures of annotated and detected objects, and pycocotools' own evaluation of them."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from swinv2_mm.engine.display.mistakes.matching import Objects

CLASSES, SIDE = 4, 120


def scene(seed: int, crowds: bool = True) -> tuple[Objects, Objects]:
    """Annotations, some of them crowds, and detections: good, shifted, of another class, double, and of nothing."""
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 7)
    boxes = np.concatenate([rng.integers(0, 80, (number, 2)), rng.integers(12, 40, (number, 2))], axis=1).astype(float)
    labels = rng.integers(0, CLASSES, number)
    near = np.concatenate([boxes + rng.normal(0, scale, boxes.shape) for scale in (1, 4, 8)])
    kept = rng.random(len(near)) < 0.7
    nothing = np.concatenate([rng.integers(0, 80, (3, 2)), rng.integers(5, 30, (3, 2))], axis=1).astype(float)
    found = np.concatenate([near[kept], nothing])
    found[:, 2:] = found[:, 2:].clip(2)
    found_labels = np.concatenate([np.tile(labels, 3)[kept], rng.integers(0, CLASSES, 3)])
    wrong = rng.random(len(found)) < 0.3
    found_labels[wrong] = rng.integers(0, CLASSES, wrong.sum())
    ignored = (rng.random(number) < 0.15) & crowds
    scores = rng.permutation(len(found)) / len(found)
    return (
        Objects(labels, boxes, [ellipse(box) for box in boxes], ignored=ignored),
        Objects(found_labels, found, [ellipse(box) for box in found], scores=scores),
    )


def ellipse(box: np.ndarray) -> dict:
    """The run lengths of an ellipse in a box."""
    x, y, width, height = box
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = ((columns - x - width / 2) / (width / 2)) ** 2 + ((rows - y - height / 2) / (height / 2)) ** 2 <= 1
    return coco.encode(np.asfortranarray(inside.astype(np.uint8)))


def coco_evaluation(scenes: list[tuple[Objects, Objects]], kind: str, score_thr: float = -1.0) -> Any:
    """COCOeval by its public interface, over areas of any size, without detections below a score."""
    truth: dict[str, list] = {
        'images': [{'id': index, 'height': SIDE, 'width': SIDE} for index in range(len(scenes))],
        'annotations': [],
        'categories': [{'id': label} for label in range(CLASSES)],
    }
    found = []
    for index, (annotated, detected) in enumerate(scenes):
        for place, entry in enumerate(_entries(index, annotated, kind)):
            number = len(truth['annotations']) + 1
            truth['annotations'].append(entry | {'id': number, 'iscrowd': int(annotated.ignored[place])})
        for entry, score in zip(_entries(index, detected, kind), detected.scores, strict=True):
            found += [entry | {'score': score}] if score >= score_thr else []
    with redirect_stdout(StringIO()):
        api = COCO()
        api.dataset = truth
        api.createIndex()
        evaluation = COCOeval(api, api.loadRes(found), kind)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ['all']
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _entries(image: int, objects: Objects, kind: str) -> list[dict]:
    key, regions = ('bbox', objects.boxes.tolist()) if kind == 'bbox' else ('segmentation', objects.masks)
    return [
        {'image_id': image, 'category_id': label, key: region, 'area': 100}
        for label, region in zip(objects.labels.tolist(), regions, strict=True)
    ]
