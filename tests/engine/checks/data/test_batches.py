"""Batches that a model of MMSegmentation does not take are refused before a run, by the key to change."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from support.small_data import map_loader, write_maps

from swinv2_mm.engine.checks import run_checks
from swinv2_mm.engine.checks.data.annotations import check_datasets
from swinv2_mm.engine.checks.data.batches import check_batches, check_picture_sizes
from swinv2_mm.engine.checks.model import check_model
from swinv2_mm.errors import UserError

CHECKS = [check_datasets, check_model, check_batches, check_picture_sizes]
LABELS = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 2
LOADING = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}]
PACK = {'type': 'PackSegInputs'}
UPER = {'type': 'UPerHead', 'in_channels': [8, 16], 'in_index': [0, 1], 'pool_scales': (1, 2)}
FCN = {'type': 'FCNHead', 'in_channels': 16, 'in_index': 1}
PSP = {'type': 'PSPHead', 'in_channels': 16, 'in_index': 1, 'pool_scales': (1, 2)}


@pytest.fixture
def pictures(tmp_path):
    """Five of one size, and as many of two sizes."""
    write_maps(tmp_path / 'one', LABELS, 5)
    write_maps(tmp_path / 'two', LABELS, 5)
    for name, picture in (('img', np.zeros((64, 96, 3), np.uint8)), ('map', np.tile(LABELS, 2)[:, :96])):
        cv2.imwrite(str(tmp_path / 'two' / name / '4.png'), picture)
    return tmp_path


def config(folder, split='train', head=FCN, others=None, norm='BN', steps=(), launcher='none', pad=None, **loader):
    """A tiny segmentor, and one data loader; ``pad`` goes to the data preprocessor."""
    norm_cfg = {'type': norm} | ({'num_groups': 8} if norm == 'GN' else {})
    common = {'channels': 8, 'num_classes': 2, 'norm_cfg': norm_cfg}
    backbone = {'type': 'swinv2_mm.SwinTransformerV2', 'embed_dims': 8, 'depths': (1, 1), 'num_heads': (1, 2)}
    model = {
        'type': 'EncoderDecoder',
        'backbone': backbone | {'window_size': 4, 'out_indices': (0, 1)},
        'data_preprocessor': {'type': 'SegDataPreProcessor', **(pad or {'size': (64, 64)})},
        'decode_head': head | common,
        'auxiliary_head': others and [FCN | common, others | common],
        'test_cfg': {'mode': 'whole'},
    }
    defaults = {'batch_size': 2, 'sampler': {'type': 'DefaultSampler'}}
    read = map_loader(folder, pipeline=[*LOADING, *steps, PACK])
    parts = {'model': model, 'train_cfg': {'by_epoch': True, 'max_epochs': 1}, 'default_scope': 'mmseg'}
    return Config({**parts, 'launcher': launcher, f'{split}_dataloader': {**defaults, **read, **loader}})


ONE = {'batch_size': 1}
SYNCED = {'launcher': 'pytorch', 'norm': 'SyncBN'}


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'head': UPER}, r'5 pictures in batches of 2 leave .*model\.decode_head.* train_dataloader\.drop_last=True'),
        ({'head': UPER, **ONE}, r'^train_dataloader\.batch_size=1: .* train_dataloader\.batch_size=3\.$'),
        ({'others': PSP}, r'model\.auxiliary_head\.1\.psp_modules'),
        ({'head': UPER, 'norm': 'SyncBN'}, r'train_dataloader\.drop_last=True'),
        ({'head': UPER, 'launcher': 'pytorch', 'batch_size': 2}, r'in each of 2 processes leave .*drop_last=True'),
        ({'batch_size': 8, 'drop_last': True}, r'leaves none to train on\. .*drop_last=False'),
        ({'head': UPER, 'drop_last': True}, None),
        ({'head': UPER, 'batch_size': 3}, None),
        ({'head': UPER, 'norm': 'GN', **ONE}, None),
        ({'head': UPER, **SYNCED, **ONE}, None),
        (ONE, None),
    ],
)
def test_a_batch_of_one_is_refused_where_batch_norm_refuses_it(pictures, monkeypatch, settings, message):
    """Bug: the last batch of the first epoch has one picture, and BatchNorm raises an error at the end of it; or a
    training is refused whose heads take one picture."""
    monkeypatch.setenv('WORLD_SIZE', '2')
    cfg = config(pictures / 'one', **settings)
    if message:
        with pytest.raises(UserError, match=message):
            run_checks(cfg, ('train',), CHECKS)
    else:
        model = run_checks(cfg, ('train',), CHECKS).model
        assert all(module.training for module in model.modules())
        assert 'forward' not in vars(model.backbone)


CROP = {'type': 'RandomCrop', 'crop_size': (64, 64)}
FIXED = {'type': 'Resize', 'scale': (64, 64), 'keep_ratio': False}
KEPT = {'type': 'Resize', 'scale': (128, 32), 'keep_ratio': True}
DIVISOR = {'size_divisor': 32}


@pytest.mark.parametrize(
    ('split', 'settings', 'message'),
    [
        ('val', {}, r'^val_dataloader\.batch_size=2: .*64x64 .*64x96 .* val_dataloader\.batch_size=1\.$'),
        ('val', {'steps': [KEPT]}, r'32x32 .*32x48'),
        ('val', {'pad': {**DIVISOR, 'test_cfg': DIVISOR}}, r'val_dataloader\.batch_size=1\.$'),
        ('test', {}, r'test_dataloader\.batch_size=1\.$'),
        ('val', {'steps': [FIXED]}, None),
        ('val', ONE, None),
        ('train', {}, r'RandomCrop.* model\.data_preprocessor\.size_divisor=32'),
        ('train', {'pad': {'size': None}}, r'^model\.data_preprocessor: .* neither.*model\.data_preprocessor\.size=\('),
        ('train', {'pad': {'size': (64, 64), **DIVISOR}}, r'both.* model\.data_preprocessor\.size_divisor=None\.$'),
        ('train', {'steps': [CROP]}, None),
        ('train', {'pad': {'size': (64, 96)}}, None),
        ('train', {'pad': DIVISOR}, None),
    ],
)
def test_pictures_are_refused_that_make_no_batch(pictures, split, settings, message):
    """Bug: the first epoch ends in an AssertionError, since validation does not pad pictures of several sizes; or
    batches are refused that crops, padding or a fixed size make possible."""
    cfg = config(pictures / 'two', split, **settings)
    if message:
        with pytest.raises(UserError, match=message):
            run_checks(cfg, (split,), CHECKS)
    else:
        assert run_checks(cfg, (split,), CHECKS).datasets


def test_pictures_of_one_size_make_batches(pictures):
    """Bug: a validation in batches is refused by its batch size alone."""
    assert run_checks(config(pictures / 'one', 'val'), ('val',), CHECKS).datasets
