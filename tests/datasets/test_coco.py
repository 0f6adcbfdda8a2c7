"""datasets/coco.py: annotations decode to exactly the masks that were drawn."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from support.tiny_shapes import SPEC

from swinv2_mm.datasets import SPLITS, ShapesSpec, render
from swinv2_mm.datasets.coco import bounding_box, segmentation


@pytest.fixture(params=SPLITS)
def coco(written, request) -> tuple[COCO, str]:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(written / 'annotations' / f'instances_{request.param}.json')), request.param


def test_instances_and_semantic_maps_tell_the_same(coco, written):
    """Instance by instance, the decoded masks rebuild the semantic map exactly.

    Bugs prevented: class numbers off by one between the two, hidden parts counted as visible, overlapping masks,
    outlines through pixel centres (they lose half a pixel all around), rows and columns exchanged in run lengths.
    """
    api, split = coco
    for info in api.loadImgs(api.getImgIds()):
        semantic = cv2.imread(str(written / 'annotations' / split / info['file_name']), cv2.IMREAD_UNCHANGED)
        assert semantic.shape == (info['height'], info['width'])
        rebuilt = np.ones_like(semantic)
        for annotation in api.loadAnns(api.getAnnIds(info['id'])):
            mask = api.annToMask(annotation).astype(bool)
            assert (rebuilt[mask] == 1).all(), 'instances overlap'
            rebuilt[mask] = annotation['category_id'] + 1
        assert np.array_equal(rebuilt, semantic)


def test_area_and_box_are_those_of_the_visible_mask(coco):
    """A box of the hidden whole, or one pixel short, caps the average precision that a perfect detector reaches."""
    api, _ = coco
    for annotation in api.loadAnns(api.getAnnIds()):
        mask = api.annToMask(annotation)
        x, y, w, h = cv2.boundingRect(mask)
        assert annotation['bbox'] == [x, y, w, h]
        assert annotation['area'] == np.count_nonzero(mask)


def test_annotations_are_what_the_frameworks_accept(coco):
    """COCOeval takes the id 0 for "unmatched"; MMDetection scales polygons in place, so integers would be cut off."""
    api, _ = coco
    annotations = api.loadAnns(api.getAnnIds())
    assert len({a['id'] for a in annotations}) == len(annotations) and min(a['id'] for a in annotations) == 1
    assert [c['name'] for c in api.loadCats(api.getCatIds())] == list(SPEC.classes)
    for annotation in annotations:
        assert annotation['iscrowd'] == 0
        if isinstance(annotation['segmentation'], list):
            assert all(len(p) >= 6 and all(isinstance(v, float) for v in p) for p in annotation['segmentation'])
        else:
            assert isinstance(annotation['segmentation']['counts'], list)


def test_polygons_and_run_lengths_both_occur():
    """Code that reads only one kind must fail on the default set; and a hole must never be filled by a polygon."""
    kinds = {
        type(segmentation(instance.mask))
        for index in range(30)
        for instance in render(ShapesSpec(size=64), 'training', index).instances
    }
    assert kinds == {list, dict}
    rings = ShapesSpec(classes=('ring',), size=64)
    whole = [i for n in range(20) for i in render(rings, 'training', n).instances if i.visible_share == 1]
    assert whole and all(isinstance(segmentation(instance.mask), dict) for instance in whole)


@pytest.mark.parametrize('density', [0.1, 0.5, 0.9])
def test_any_mask_survives_coco(density):
    """Specks, bridges of one corner, nested holes, masks touching every border: the rare cases, made frequent."""
    rng = np.random.default_rng(0)
    api = COCO()
    for _ in range(100):
        mask = rng.random(rng.integers(1, 20, 2)) < density
        if mask.any():
            api.imgs = {0: {'height': mask.shape[0], 'width': mask.shape[1]}}
            decoded = api.annToMask({'image_id': 0, 'segmentation': segmentation(mask)})
            assert np.array_equal(decoded, mask)
            assert bounding_box(mask) == list(cv2.boundingRect(mask.astype(np.uint8)))
