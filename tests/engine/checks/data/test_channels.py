"""Images, preprocessor and backbone agree on the number of channels, or the run is refused with the way out."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor
from mmengine.registry import TRANSFORMS, DefaultScope

from swinv2_mm.engine.checks.data.channels import check_channels
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.errors import UserError

COLOURS = {'type': 'DetDataPreprocessor', 'mean': [1.0, 2, 3], 'std': [1.0, 1, 1], 'bgr_to_rgb': True}
GREY = {'type': 'DetDataPreprocessor', 'mean': [1.0], 'std': [1.0]}
SEGMENTS = COLOURS | {'type': 'SegDataPreProcessor'}
FOUR = {'mean': [1.0, 2, 3, 4], 'std': [1.0, 1, 1, 1]}


def check(channels, preprocessor, color_type='color', *others, **loading):
    loading = {'type': 'LoadImageFromFile', 'color_type': color_type, **loading}
    pipeline = [{'type': 'mmdet.Resize'}, loading, *others]
    loader = {'dataset': {'type': 'RepeatDataset', 'dataset': {'pipeline': pipeline}}}
    backbone = {'type': 'swinv2_mm.SwinTransformerV2', 'in_channels': channels}
    model = {'module': {'backbone': backbone, 'data_preprocessor': preprocessor}}
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_channels(Config({'model': model, 'train_dataloader': loader}), Context(('train',)))


@pytest.mark.parametrize(
    ('channels', 'preprocessor', 'color_type', 'words'),
    [
        (1, COLOURS, 'grayscale', 'model.data_preprocessor.mean, which has 3 values'),
        (1, GREY | {'bgr_to_rgb': True}, 'grayscale', '--cfg-options model.data_preprocessor.bgr_to_rgb=False'),
        (2, GREY | {'rgb_to_bgr': True}, 'unchanged', '--cfg-options model.data_preprocessor.rgb_to_bgr=False'),
        (1, GREY, 'color', "pipeline.1 loads images of 3 channels .*Set color_type='grayscale' there"),
        (3, COLOURS, 'grayscale', "pipeline.1 loads images of 1 channel .*Set color_type='color' there"),
        (4, GREY, 'color', "Set color_type='unchanged' there"),
        (4, FOUR | {'type': 'DetDataPreprocessor'}, 'unchanged', "dict.type='Normalize'.*to_rgb=False"),
        (3, COLOURS | {'std': [1.0]}, 'color', 'mean has 3 values, and std 1'),
    ],
)
def test_a_number_of_channels_that_differs_is_refused(channels, preprocessor, color_type, words):
    """Bug: an IndexError in the first iteration; or a refusal that names no way to train on four channels."""
    with pytest.raises(UserError, match=words):
        check(channels, preprocessor, color_type)


@pytest.mark.parametrize(
    ('channels', 'preprocessor', 'color_type'),
    [
        (3, COLOURS, 'color_ignore_orientation'),
        (3, COLOURS, 'unchanged'),
        (1, GREY, 'grayscale'),
        (4, FOUR | {'type': 'SegDataPreProcessor'}, 'unchanged'),
        (4, {'type': 'DetDataPreprocessor', 'mean': None}, 'unchanged'),
        (4, GREY, 'unchanged'),
        (3, SEGMENTS, 'grayscale'),  # three means make three channels of one
        (4, FOUR | {'type': 'SegDataPreProcessor', 'bgr_to_rgb': True}, 'unchanged'),  # which is ignored there
    ],
)
def test_what_agrees_passes(channels, preprocessor, color_type):
    """Bug: a config that trains is refused."""
    check(channels, preprocessor, color_type)


def test_channels_are_not_guessed_behind_transforms_that_may_change_them():
    """Bug: a config with a transform of the user's, or a decoder that reads more channels, is refused."""

    @TRANSFORMS.register_module(force=True)
    class TwoMore:
        pass

    check(5, GREY, 'color', {'type': 'TwoMore'})
    check(1, GREY, 'color', {'type': 'mmseg.RGB2Gray'})
    check(5, GREY, 'color', imdecode_backend='tifffile')


def test_the_ways_out_for_four_channels_compute_what_they_say():
    """Bug: a remedy that fails, or normalises by other numbers: mmcv's Normalize goes through OpenCV's scalars."""
    from mmcv.transforms import Normalize

    mean, std = [10.0, 20, 30, 40], [2.0, 4, 5, 8]
    image = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    normalised = Normalize(mean, std, to_rgb=False)({'img': image})['img']
    np.testing.assert_allclose(normalised, (image - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-5)
    channels_first = torch.from_numpy(image).permute(2, 0, 1)
    (given,) = ImgDataPreprocessor(mean=[110.0], std=[60.0])({'inputs': [channels_first]})['inputs']
    torch.testing.assert_close(given, (channels_first.float() - 110) / 60)


def test_the_preprocessor_may_stand_beside_the_model():
    """As MMPretrain's does, which takes a mean for each of four channels. Bug: a remedy by a key that is not there."""
    backbone = {'type': 'swinv2_mm.SwinTransformerV2', 'in_channels': 4}
    cfg = Config({'default_scope': 'mmpretrain', 'model': {'backbone': backbone}, 'data_preprocessor': FOUR})
    check_channels(cfg, Context(()))
    cfg.data_preprocessor = {'mean': [1.0, 2, 3], 'std': [1.0, 1, 1]}
    with pytest.raises(UserError, match=r'match data_preprocessor\.mean, which has 3.*Pass.*') as error:
        check_channels(cfg, Context(()))
    assert 'model.data_preprocessor' not in str(error.value) and 'to_rgb' not in str(error.value)
