"""Tiles: they cover the picture, their boxes are merged without doubles, their logits fade into each other."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from swinv2_mm.inference.found import Found, decode, encode
from swinv2_mm.inference.tiles import merged, predict_in_tiles, starts


@pytest.mark.parametrize('length', [1, 63, 64, 65, 127, 128, 300, 12000])
@pytest.mark.parametrize('overlap', [0.0, 0.2, 0.5])
def test_tiles_cover_the_picture_and_overlap(length, overlap):
    """Bug: the last pixels are in no tile, a tile hangs over the border, or two tiles share less than was asked for."""
    begins = starts(length, 64, overlap)
    assert begins[0] == 0 and begins[-1] == max(0, length - 64)
    shared = [first + 64 - second for first, second in pairwise(begins)]
    assert all(number >= int(64 * overlap) for number in shared)
    assert len(begins) <= 1 + np.ceil(max(0, length - 64) / int(64 * (1 - overlap)))


TILES = [(0, 0), (0, 80)]  # two of 100 x 100 pixels in a picture of 100 x 180


def found(*boxes, label=0, score=0.5):
    """Boxes of a tile, each with a score of its own behind the corners, if it has one, and a full mask."""
    corners = np.array([box[:4] for box in boxes], np.float32).reshape(-1, 4)
    masks = []
    for x1, y1, x2, y2 in corners.astype(int):
        mask = np.zeros((100, 100), bool)
        mask[y1:y2, x1:x2] = True
        masks.append(encode(mask))
    scores = np.array([box[4] if len(box) > 4 else score for box in boxes], np.float32)
    return Found(100, 100, corners, scores, np.full(len(boxes), label), masks)


def boxes_of(*parts):
    return sorted(merged(parts, TILES, (100, 180)).boxes.tolist())


def test_an_object_that_two_tiles_see_is_kept_once():
    """Bug: an object in the overlap is counted twice."""
    assert boxes_of(found((82, 10, 98, 30)), found((2, 10, 18, 31))) == [[82, 10, 98, 30]]


def test_a_part_of_an_object_does_not_survive_beside_the_whole():
    """Bug: NMS keeps the part that the border of a tile has cut, since its score is higher, and drops the whole; or it
    keeps both, since they share too little of their union."""
    whole = found((0.5, 10, 60, 50, 0.4))  # begins at the picture's column 80
    part = found((81, 10, 100, 50, 0.9))
    assert boxes_of(part, found((5, 10, 60, 50, 0.4))) == [[85, 10, 140, 50]]
    assert boxes_of(part, whole) == [[80.5, 10, 140, 50]]  # it touches a border, too, and is the larger part


def test_neighbours_and_other_classes_stay():
    """Bug: two objects side by side, or of two classes in one place, become one."""
    assert len(boxes_of(found((60, 10, 80, 30)), found((5, 10, 20, 30)))) == 2
    assert len(boxes_of(found((82, 10, 98, 30)), found((2, 10, 18, 30), label=1))) == 2
    close = found((10, 10, 30, 30), (12, 10, 32, 30))
    assert len(boxes_of(close, found())) == 2  # of one tile: the model has kept both


def test_masks_move_with_their_boxes():
    """Bug: masks stay in the place that they have in their tile, or are those of other boxes after sorting."""
    result = merged([found((10, 20, 30, 40, 0.3)), found((40, 5, 60, 15, 0.8))], TILES, (100, 180))
    for box, mask in zip(result.boxes.astype(int), result.masks, strict=True):
        rows, columns = np.nonzero(decode(mask))
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box.tolist()
        assert mask['size'] == [100, 180]


class Pointwise:
    """A segmentor whose logits are the channels of the pixel, plus ``border`` at the border of what it sees.

    A threshold decides where there is one channel.
    """

    task, classes, model = 'semantic', ('a', 'b', 'c'), SimpleNamespace(decode_head=SimpleNamespace(threshold=0.5))

    def __init__(self, border=0.0):
        self.border = border

    def prepare(self, loaded):
        return loaded['img']

    def predict(self, images):
        for image in images:
            logits = torch.from_numpy(image.transpose(2, 0, 1).copy())
            edge = torch.ones(logits.shape[1:], dtype=torch.bool)
            edge[2:-2, 2:-2] = False
            logits[-1][edge] += self.border
            yield SimpleNamespace(seg_logits=SimpleNamespace(data=logits))


@pytest.mark.parametrize('size', [(40, 50), (32, 90), (101, 33), (97, 131)], ids=str)
@pytest.mark.parametrize('overlap', [0.0, 0.2, 0.5])
@pytest.mark.parametrize('channels', [1, 3])
def test_blended_logits_are_those_of_the_whole_picture(size, overlap, channels):
    """Bug: rows or columns are added twice, or not at all, where tiles overlap."""
    image = np.random.default_rng(0).random((*size, channels)).astype(np.float32)
    expected = image.argmax(2) if channels > 1 else image[..., 0] > 0.5
    result = predict_in_tiles(Pointwise(), {'img': image}, 32, overlap, batch_size=3, score_thr=0.0)
    assert np.array_equal(result.map, expected)


def test_the_middle_of_a_tile_weighs_more_than_its_border():
    """Bug: what a tile sees badly, at its border, counts as much as what its neighbour sees well, as in the slide mode
    of MMSegmentation."""
    image = np.zeros((32, 200, 3), np.float32)
    image[..., 0] = 1.0
    wrong = predict_in_tiles(Pointwise(border=1.9), {'img': image}, 32, 0.5, 1, 0.0).map[4:-4, 4:-4] != 0
    assert not wrong.any()
