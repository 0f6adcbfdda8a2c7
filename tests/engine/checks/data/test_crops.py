"""What SimMIM does not take of its pictures is told before anything is written."""

from pathlib import Path

import pytest
from support.tiny_training import write_config as write_other_config
from support.tiny_unlabelled import write_config, write_pictures
from support.versions import needs

from swinv2_mm.engine.runs import prepare_training
from swinv2_mm.errors import UserError

pytestmark = [pytest.mark.usefixtures('own_process'), needs('mmcv')]
PIPELINE = 'train_dataloader.dataset.pipeline'


@pytest.mark.parametrize(('means', 'channels', 'color_type'), [(3, 3, 'color'), (1, 1, 'grayscale'), (1, 4, 'unchanged')])
def test_pictures_that_fit_are_counted(means, channels, color_type, tmp_path):
    """Bug: a check that refuses a recipe, or a census without the pictures."""
    write_pictures(tmp_path / 'pictures', shape=(40, 48, 4 if channels == 4 else 3))
    config = write_config(tmp_path, means=means, channels=channels, color_type=color_type)
    context = prepare_training(str(config), work_dir='run').found
    (census,) = context.censuses
    assert (census.key, census.pictures, census.warnings) == ('train_dataloader.dataset', 4, [])
    assert context.warnings == [] and not Path('run').exists()


def test_files_that_are_left_out_are_warned_of(tmp_path):
    """Bug: a folder of which a part is trained on, and nobody notices."""
    write_pictures(tmp_path / 'pictures')
    (tmp_path / 'pictures' / 'more.npy').touch()
    (census,) = prepare_training(str(write_config(tmp_path)), work_dir='run').found.censuses
    assert len(census.warnings) == 1 and 'more.npy' in census.warnings[0]


def without(index):
    """A config's line that removes a transform."""
    return f"train_dataloader['dataset']['pipeline'].pop({index})\n"


@pytest.mark.parametrize(
    ('extra', 'options', 'words'),
    [
        ('', {'train_dataloader.dataset.data_root': 'gone'}, r'data are missing: gone .*data_root=/path/to/it'),
        (
            '',
            {'train_dataloader.dataset.data_prefix': {'img_path': ['', 'gone']}},
            r'data are missing: pictures/gone .*data_prefix\.img_path\.1=/path/to/it/gone',
        ),
        ('', {'train_dataloader.dataset.data_prefix': {'x': 'a'}}, r'train_dataloader\.dataset.*data_prefix'),
        ('', {'train_dataloader.dataset.data_root': 'empty'}, r'train_dataloader\.dataset: empty/? holds no file'),
        ('', {'train_dataloader.batch_size': 9, 'train_dataloader.drop_last': True}, 'drop_last=True leaves none'),
        ('', {f'{PIPELINE}.1.scale': (36, 24)}, r'mask_patch_size=8 does not divide .* 24 x 36'),
        ('', {f'{PIPELINE}.1.scale': (0, 24)}, rf'{PIPELINE}\.1: scale=\(0, 24\)'),
        ('', {f'{PIPELINE}.1.crop_ratio_range': (67, 100)}, rf'{PIPELINE}\.1: crop_ratio_range'),
        (without(1), {'train_dataloader.dataset.data_root': 'odd'}, r'4\.png leaves .* 41 x 48 pixels, which model\.mask_patch_size=8 .*scale=\(48, 40\)'),
        (without(1), {'model.data_preprocessor.pad_size_divisor': 8}, r'several sizes .*(4[01] x 48).*(4[01] x 48)'),
        (without(3), {}, 'gives no inputs for .*PackImages'),
        ('', {f'{PIPELINE}.0.color_type': 'grayscale'}, rf"{PIPELINE}\.0 loads images of 1 channel .*'color'"),
        ('', {f'{PIPELINE}.0.color_type': 'unchanged'}, r'grey\.png leaves .* with 1 channels .*does not take'),
        (
            '',
            {
                f'{PIPELINE}.0.color_type': 'unchanged',
                'model.data_preprocessor.mean': [1.0],
                'model.data_preprocessor.std': [1.0],
                'model.data_preprocessor.bgr_to_rgb': False,
            },
            r'grey\.png leaves .* with 1 channels .*in_channels=3.*color_type',
        ),
        ('', {'custom_hooks': [{'type': 'swinv2_mm.ReconstructionHook', 'interval': 0}]}, r'custom_hooks\.0.*interval=0'),
    ],
)
def test_mistakes_are_told_before_anything_is_written(extra, options, words, tmp_path):
    """Bug: a traceback of a data worker in the first step; black borders that the model learns to paint; a folder of
    several that is not there."""
    write_pictures(tmp_path / 'pictures')
    write_pictures(tmp_path / 'pictures', 1, (41, 48, 3), '4.png')
    write_pictures(tmp_path / 'pictures', 1, (40, 48), 'grey.png')
    write_pictures(tmp_path / 'odd', 1, (41, 48, 3), '4.png')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=words):
        prepare_training(str(write_config(tmp_path, extra=extra)), work_dir='run', cfg_options=options)
    assert not Path('run').exists()


def test_missing_shapes_are_to_be_generated_with_their_arguments(tmp_path):
    """Bug: the command for another data set, of 300 pictures with labels."""
    config = write_config(tmp_path, data_root='data/shapes_unlabelled/')
    command = 'python tools/make_shapes.py data/shapes_unlabelled --num-train 3000 --seed 1'
    with pytest.raises(UserError, match=command):
        prepare_training(str(config), work_dir='run')


def test_pictures_of_another_model_are_refused(tmp_path):
    """Bug: a detector that trains for an epoch, and ends in a TypeError of a hook."""
    config = write_other_config(tmp_path, extra="custom_hooks += [dict(type='swinv2_mm.ReconstructionHook')]\n")
    with pytest.raises(UserError, match=r'custom_hooks\.1: .*SimMIM.*TinyRegressor'):
        prepare_training(str(config), work_dir='run')
