"""datasets/drawing.py: images are varied, learnable and the same for a seed; bad parameters are named."""

import dataclasses

import numpy as np
import pytest
from support.tiny_shapes import SPEC, TINY

from swinv2_mm.datasets import OUTLINES, SPLITS, ShapesSpec, drawing, render


def test_no_image_is_made_twice():
    """Seeding with seed + index would give neighbouring seeds, or training and validation, the same images."""
    images = {
        render(ShapesSpec(seed=seed, size=32), split, index).image.tobytes()
        for seed in (0, 1, 2)
        for split in SPLITS
        for index in range(5)
    }
    assert len(images) == 3 * 2 * 5


@pytest.mark.parametrize('size', [32, 64])
def test_every_image_has_an_instance_and_each_can_be_seen(size):
    """An image without instances is dropped by some pipelines; one hidden to the last pixels cannot be learnt."""
    spec = ShapesSpec(size=size, classes=tuple(OUTLINES))
    for index in range(150):
        sample = render(spec, 'training', index)
        assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
        assert 1 <= len(sample.instances) <= 4
        for instance in sample.instances:
            assert instance.mask.sum() >= 40
            assert 0.25 <= instance.visible_share <= 1


def test_an_image_in_which_nothing_fits_still_has_an_instance(monkeypatch):
    """Bad luck in placing is rare enough to show up only in someone's set of a million images."""
    monkeypatch.setattr(drawing, 'DIFFICULTY', dataclasses.replace(drawing.DIFFICULTY, tries=0))
    for size in (32, 64):
        [instance] = render(ShapesSpec(size=size), 'training', 0).instances
        assert instance.mask.sum() >= 40


def test_the_set_is_varied_and_has_occlusion():
    """A class that is hardly ever placed, or shapes that never meet, would make a test of training worthless."""
    instances = [i for n in range(150) for i in render(SPEC, 'training', n).instances]
    share = np.bincount([i.label for i in instances], minlength=len(SPEC.classes)) / len(instances)
    assert share.min() > 0.18
    hidden = np.array([i.visible_share for i in instances])
    assert 0.1 < (hidden < 0.75).mean() < 0.5
    side = np.sqrt([i.mask.sum() for i in instances]) / SPEC.size
    assert (side < 0.25).mean() > 0.1 and (side > 0.45).mean() > 0.1


def test_neither_colour_nor_area_tells_the_class():
    """A palette per class, or disks twice as large as stars, would let a model score without seeing any shape."""
    colours, areas = [[] for _ in SPEC.classes], [[] for _ in SPEC.classes]
    for index in range(250):
        sample = render(SPEC, 'training', index)
        for instance in sample.instances:
            colours[instance.label].append(sample.image[instance.mask].mean(axis=0) / 255)
            areas[instance.label].append(np.log(instance.mask.sum()))
    means = np.array([np.mean(c, axis=0) for c in colours])
    assert np.ptp(means, axis=0).max() < 0.15
    assert np.ptp([np.mean(a) for a in areas]) < 0.3


def test_shapes_stand_out_from_the_background():
    """Shapes coloured like what they lie on are noise in the labels."""
    for index in range(50):
        sample = render(SPEC, 'training', index)
        ground = sample.image[sample.semantic == 1].mean(axis=0) / 255
        for instance in sample.instances:
            assert np.linalg.norm(sample.image[instance.mask].mean(axis=0) / 255 - ground) > 0.2


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'size': 31}, ['size=31', '32']),
        ({'num_train': 0}, ['num_train=0', '1']),
        ({'num_val': -1}, ['num_val=-1', '1']),
        ({'seed': -1}, ['seed=-1', '0']),
        ({'size': 64.5}, ['size=64.5', 'integer']),
        ({'classes': ()}, ['classes', 'at least one', 'disk']),
        ({'classes': ('disk', 'blob')}, ['classes', "'blob'", *OUTLINES]),
        ({'classes': ('disk', 'disk')}, ['classes', "'disk' twice"]),
        ({'classes': 'disk'}, ['classes', "'disk'", 'tuple']),
    ],
)
def test_bad_parameters_are_named(arguments, words):
    """A bad value must not come up as an index error in the middle of drawing."""
    with pytest.raises(ValueError) as error:
        ShapesSpec(**arguments)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_split_or_index_is_named():
    """'train' for 'training' would otherwise make a third set, or a KeyError without a remedy."""
    with pytest.raises(ValueError, match=r"split='train'.*training, validation"):
        render(TINY, 'train', 0)
    with pytest.raises(ValueError, match='index=-1'):
        render(TINY, 'training', -1)
