"""Pictures for eyes: read by the pipeline of the data set, and RGB of 8 bits whatever it gives."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import TRANSFORMS
from PIL import Image
from support.tiny_data import images

from swinv2_mm.engine.display.loading import Pictures, for_eyes, path_in, swaps_channels

RED = np.full((4, 6, 3), (250, 10, 20), np.uint8)


@TRANSFORMS.register_module()
class ReadArray(BaseTransform):
    """An own loading transform, whose name does not say so."""

    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        return results


def files(folder, *pipeline):
    return images(*sorted(map(str, folder.iterdir())), pipeline=[dict(step) for step in pipeline])


@pytest.mark.parametrize(
    'loading',
    [
        {'color_type': 'color_ignore_orientation'},
        {'color_type': 'color_ignore_orientation', 'to_float32': True},
        {'color_type': 'unchanged', 'imdecode_backend': 'pillow'},
    ],
)
def test_is_read_as_the_pipeline_reads_it(tmp_path, loading):
    """Bug: the picture is read again with OpenCV's defaults: turned by its EXIF orientation, unlike the predictions."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RED).save(tmp_path / '1.png', exif=exif.tobytes())
    pictures = Pictures(files(tmp_path, {'type': 'LoadImageFromFile', **loading}, {'type': 'Resize', 'scale': (2, 2)}))
    assert np.array_equal(pictures[str(tmp_path / '1.png')], RED)


def test_own_loading_and_wrapped_data_sets(tmp_path):
    """Bug: pictures of wrapped data sets, or of formats that OpenCV does not know, cannot be drawn."""
    for part, image in ('a', RED), ('b', RED[..., ::-1]):
        (tmp_path / part).mkdir()
        np.save(tmp_path / part / '1.npy', image)
    a, b = (files(tmp_path / part, {'type': 'ReadArray'}) for part in 'ab')
    assert Pictures(RepeatDataset(a, 3)).paths == [str(tmp_path / 'a/1.npy')]
    pictures = Pictures(SimpleNamespace(dataset=ConcatDataset([a, b])))
    assert pictures.paths == [str(tmp_path / part / '1.npy') for part in 'ab']
    assert np.array_equal(pictures[pictures.paths[0]], RED)
    swapping = Pictures(b, swaps_channels(Config({'model': {'data_preprocessor': {'bgr_to_rgb': True}}})))
    assert np.array_equal(swapping[pictures.paths[1]], RED)


def test_an_image_of_several_files(tmp_path):
    """Bug: an image whose channels are files has no picture, since its path is a list."""
    files = [str(tmp_path / f'{channel}.png') for channel in 'abcd']
    for value, file in enumerate(files):
        cv2.imwrite(file, np.full((2, 2), 50 * value, np.uint8))
    pictures = Pictures(images(files, pipeline=[{'type': 'mmdet.LoadMultiChannelImageFromFiles'}]))
    assert pictures[path_in({'img_path': files})][0, 0].tolist() == [0, 50, 100] and pictures.paths == files[:1]


def test_an_image_outside_of_the_data_set_is_read_by_opencv(tmp_path):
    """Bug: the samples of a data set that lists no paths cannot be drawn any more."""
    cv2.imwrite(str(tmp_path / '1.png'), RED[..., ::-1])
    assert np.array_equal(Pictures(object())[str(tmp_path / '1.png')], RED)


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
EIGHT = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize(
    'image',
    [
        EIGHT,
        EIGHT[..., None],
        EIGHT.astype(np.float32),
        EIGHT.astype(np.int64),
        EIGHT.astype(np.uint16) * 257,
        EIGHT.astype(np.int16) * 9 - 1024,
        RAMP,
        RAMP.astype(np.float32) * 7 - 2,
    ],
)
def test_all_ranges_of_numbers_become_eight_bits(image):
    """Bug: 16 bits wrap around, fractions are black, and one channel is no picture for the visualizers."""
    picture = for_eyes(image, bgr=True)
    assert picture.dtype == np.uint8 and picture.shape == (16, 16, 3)
    assert np.array_equal(picture, np.repeat(EIGHT[..., None], 3, axis=2))


def test_any_number_of_channels():
    """Bug: an alpha channel or a fourth band is an exception in the visualizer, or BGR is drawn as RGB."""
    bands = np.arange(5, dtype=np.uint8) * np.ones((2, 2, 1), np.uint8) + 1
    drawn = {n: for_eyes(bands[..., :n], bgr=False)[0, 0].tolist() for n in (1, 2, 3, 4, 5)}
    assert drawn == {1: [1, 1, 1], 2: [1, 2, 0], 3: [1, 2, 3], 4: [1, 2, 3], 5: [1, 2, 3]}
    assert for_eyes(bands[..., :4], bgr=True)[0, 0].tolist() == [3, 2, 1]


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_black(value):
    """Bug: one NaN makes the whole picture black."""
    image = RAMP.copy()
    image[3, 3] = value
    picture = for_eyes(image, bgr=False)
    assert picture[3, 3].tolist() == [0, 0, 0] and picture[-1, -1, 0] == 255


@pytest.mark.parametrize('shape', [(0, 4, 3), (2, 3, 4, 5), (7,)])
def test_what_is_no_picture_is_refused(shape):
    """Bug: an array without pixels reaches the visualizer, which ends in an assertion of OpenCV."""
    with pytest.raises(ValueError, match='is no picture'):
        for_eyes(np.zeros(shape), bgr=False)
