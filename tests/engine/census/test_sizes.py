"""Sizes of pictures without decoding them, and the pictures that differ most."""

import cv2
import mmcv
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from PIL import Image

from swinv2_mm.engine.census.sizes import picture_size, varied_samples


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_the_size_of_a_file_is_that_of_the_picture_that_is_read(tmp_path, orientation):
    """Bug: upright photographs, which cameras store lying with a note in EXIF, count as being as wide as the others."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = str(tmp_path / 'photo.jpg')
    Image.new('RGB', (30, 20)).save(path, exif=exif)
    assert picture_size(path) == mmcv.imread(path).shape[:2]


def test_a_file_that_is_no_picture_has_no_size(tmp_path):
    """Bug: an array as a picture ends the check of sizes in a traceback."""
    np.save(tmp_path / 'array.npy', np.zeros(3))
    assert [picture_size(path) for path in (tmp_path / 'array.npy', tmp_path / 'absent', None)] == [None] * 3


class Pictures(BaseDataset):
    """30 pictures of 8 x 8; one is larger and another has no file."""

    def load_data_list(self):
        for index in range(30):
            side = 16 if index == 21 else 8
            if index != 5:
                cv2.imwrite(f'{self.data_root}/{index}.png', np.zeros((side, side, 3), np.uint8))
        return [{'img_path': f'{self.data_root}/{index}.png'} for index in range(30)]


def test_the_one_picture_of_another_size_is_among_the_samples(tmp_path):
    """Bug: the first pictures of a data set are looked at, and the one that differs ends the validation."""
    dataset = Pictures(data_root=str(tmp_path), serialize_data=False, pipeline=[{'type': 'LoadImageFromFile'}])
    sizes = [sample['img'].shape[:2] for _, sample in varied_samples(dataset)]
    assert sizes.count((16, 16)) == 1
    assert sizes.count((8, 8)) >= 6
