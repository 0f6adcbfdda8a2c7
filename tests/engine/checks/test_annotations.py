"""Annotation files that MMDetection reads without harm pass; others are refused with the reason."""

import json

import pytest

from swinv2_mm.engine.checks.annotations import check_annotations
from swinv2_mm.errors import UserError

IMAGE = dict(id=1, file_name='a.png', height=8, width=8)
OBJECT = dict(id=1, image_id=1, category_id=1, bbox=[0, 0, 4, 4], area=16)


def check(folder, **parts):
    path = folder / 'instances.json'
    path.write_text(json.dumps(dict(images=[IMAGE], categories=[dict(id=1, name='disk')], **parts)))
    check_annotations(path, ['disk'], 'test_dataloader.dataset')


def test_a_test_set_without_ground_truth_passes(tmp_path):
    """Bug: COCO's image_info_test-dev2017.json, which has no list of annotations, is refused."""
    check(tmp_path)


def test_an_unknown_category_passes_but_a_file_of_nothing_else_is_refused(tmp_path):
    """Bug: a whole file is refused for an object that MMDetection skips; or one whose ids are all another type."""
    stray = dict(OBJECT, id=2, category_id=9)
    check(tmp_path, annotations=[OBJECT, stray])
    with pytest.raises(UserError, match='category_id=9'):
        check(tmp_path, annotations=[stray])


def test_an_object_without_area_is_refused(tmp_path):
    """Bug: a KeyError of MMDetection once the work dir is made; files made by hand lack it."""
    with pytest.raises(UserError, match=r'annotations\[0\] has no area'):
        check(tmp_path, annotations=[{name: value for name, value in OBJECT.items() if name != 'area'}])
