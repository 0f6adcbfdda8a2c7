"""Run-length masks, maps and records, compared with pycocotools."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools.mask import encode as encode_by_coco

from swinv2_mm.errors import UserError
from swinv2_mm.inference.found import Found, class_map, decode, encode, found_in

SHAPES = [(1, 1), (1, 7), (7, 1), (5, 6), (40, 31)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('density', [0.0, 0.1, 0.5, 0.95, 1.0])
def test_masks_are_those_of_coco(shape, density):
    """Bug: a run that goes on in the next column, an empty mask or a full one is coded as something else."""
    mask = np.random.default_rng(0).random(shape) < density
    expected = encode_by_coco(np.asfortranarray(mask.astype(np.uint8)))
    assert encode(mask) == {'size': list(shape), 'counts': expected['counts'].decode()}
    assert np.array_equal(decode(encode(mask)), mask)


@pytest.mark.parametrize(('x', 'y'), [(0, 0), (3, 5), (10, 0), (0, 8), (10, 8)])
def test_a_mask_of_a_tile_is_placed_in_the_picture(x, y):
    """Bug: the mask of a tile is shifted along the wrong axis, or wraps around the border of the picture."""
    mask = np.random.default_rng(0).random((12, 20)) < 0.6
    whole = np.zeros((20, 30), bool)
    whole[y : y + 12, x : x + 20] = mask
    assert encode(mask, x, y, whole.shape) == encode(whole)


def sample(labels, scores=None):
    """A data sample with boxes of 10 x 10 pixels."""
    from mmdet.structures import DetDataSample

    number = len(labels)
    boxes = torch.tensor([[5.0, 5, 15, 15]]).repeat(number, 1)
    values = InstanceData(bboxes=boxes, labels=torch.tensor(labels), scores=torch.tensor(scores or [0.5] * number))
    return DetDataSample(metainfo={'ori_shape': (20, 30)}, pred_instances=values)


def test_records_are_those_above_the_threshold_the_best_first():
    """Bug: a box at the threshold is lost, corners are written as width and height, or the order is the model's."""
    records = found_in(sample([0, 1, 0], [0.5, 0.9, 0.49]), 'detection', 0.5, 2).records()
    assert [(record['label'], record['score']) for record in records] == [(1, 0.9), (0, 0.5)]
    assert records[0] == {'label': 1, 'score': 0.9, 'bbox': [5.0, 5.0, 10.0, 10.0]}


def test_a_class_without_a_name_is_a_mistake():
    """Bug: the names of another data set are written beside the boxes, or an index fails in the drawing."""
    with pytest.raises(UserError, match='found class 2'):
        found_in(sample([0, 2]), 'detection', 0.0, 2)


def test_numbers_that_are_not_finite_are_a_mistake():
    """Bug: NaN, as of an overflow in float16, is below every threshold and the first class of a map: a picture in which
    nothing is found."""
    with pytest.raises(UserError, match='NaN'):
        found_in(sample([0, 1], [0.5, float('nan')]), 'detection', 0.0, 2)
    logits = SimpleNamespace(data=torch.tensor([[[0.0]], [[float('inf')]]]))
    with pytest.raises(UserError, match='NaN'):
        found_in(SimpleNamespace(ori_shape=(1, 1), seg_logits=logits), 'semantic', 0.0, 2)


def test_a_map_has_room_for_its_classes():
    """Bug: class 256 becomes class 0, or a pixel of no class becomes one."""
    labels = np.array([[0, 255, 256, 300]])
    assert class_map(labels, 200).tolist() == [[0, 255, 255, 255]]
    wide = class_map(labels, 300)
    assert wide.tolist() == [[0, 255, 256, 65535]] and wide.dtype == np.uint16
    assert Found(1, 4, map=class_map(np.array([[0, 1, 1, 255]]), 3)).pixels(3) == {'0': 1, '1': 2}
