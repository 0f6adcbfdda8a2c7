"""The named file fills the backbone, or training does not start."""

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file
from support import ROOT
from support.tiny_training import write_config
from support.versions import needs

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine.checks import run_checks
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.weights import check_load_from, check_pretrained, starts_from_noise
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.runs import build_runner, prepare_training
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
BACKBONE = {'embed_dims': 8, 'depths': (1, 2), 'num_heads': (1, 2), 'window_size': 4, 'out_indices': (1,)}


def config(path, prefix=None, **changes):
    init_cfg = {'type': 'Pretrained', 'checkpoint': str(path), 'prefix': prefix}
    backbone = {'type': 'swinv2_mm.SwinTransformerV2', 'init_cfg': init_cfg, **BACKBONE, **changes}
    return Config({'model': {'type': 'Detector', 'backbone': backbone}})


@pytest.fixture
def weights():
    """Of a classifier: those of the backbone, without output norms."""
    state = SwinTransformerV2(**BACKBONE).state_dict()
    return {key: tensor for key, tensor in state.items() if not key.startswith('norm')}


@pytest.mark.parametrize('init_cfg', [dict(type='Pretrained'), dict(type='Pretrained', checkpoint='gone.pth')])
@pytest.mark.parametrize('several', [False, True])
def test_pretrained_weights_must_be_there(init_cfg, several):
    """Bug: training starts, and mmengine misses the file minutes later, or a loader of its own starts from noise."""
    backbone = dict(type='SwinTransformerV2', init_cfg=[init_cfg] if several else init_cfg)
    cfg = Config(dict(model=dict(type='Detector', backbone=backbone)))
    with pytest.raises(UserError, match=r'model\.backbone\.init_cfg'):
        check_pretrained(cfg)
    assert not starts_from_noise(cfg)


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        pytest.param('maskrcnn_swinv2_t', 'MaskRCNN', marks=needs('mmdet')),
        pytest.param('upernet_swinv2_t', 'EncoderDecoder', marks=needs('mmseg')),
        pytest.param('imagenet_swinv2_t_256', 'ImageClassifier', marks=needs('mmpretrain')),
    ],
)
@pytest.mark.parametrize('several', [False, True])
def test_other_whole_models_are_not_filled(name, kind, several):
    """The backbone is, whose init_cfg the message names; SimMIM alone is filled as a whole. Bug: a run that stops when
    it initialises its weights, behind minutes of loading data."""
    cfg = load_config(f'{ROOT}/configs/{name}.py', {'model.backbone.init_cfg': None})
    init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint='simmim.pth')
    cfg.model.init_cfg = [init_cfg] if several else init_cfg
    key = r'^model\.init_cfg\.0' if several else r'^model\.init_cfg'
    remedy = r'model\.init_cfg=None model\.backbone\.init_cfg\.type=\S+ model\.backbone\.init_cfg\.ch\S+=simmim\.pth\.'
    with pytest.raises(UserError, match=f'{key}: .* {kind} is neither.*{remedy}$'):
        run_checks(cfg, ('train',), [check_pretrained])


def test_a_start_from_random_weights_is_recognised():
    for init_cfg in (None, dict(type='TruncNormal', layer='Linear')):
        cfg = Config(dict(model=dict(type='Detector', backbone=dict(type='SwinTransformerV2', init_cfg=init_cfg))))
        check_pretrained(cfg)
        assert starts_from_noise(cfg)
        cfg.load_from = 'https://host/weights.pth'
        assert not starts_from_noise(cfg)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_loads_a_file_that_fits(suffix, weights, tmp_path):
    """Bug: a checkpoint in the safetensors format is unpickled."""
    path = tmp_path / f'weights.{suffix}'
    save_file(weights, path) if suffix == 'safetensors' else torch.save({'state_dict': weights}, path)
    check_pretrained(config(path))
    options = {'type': 'Pretrained', 'checkpoint': str(path)}
    options = {f'model.backbone.init_cfg.{key}': value for key, value in options.items()}
    runner = build_runner(prepare_training(write_config(tmp_path, f'{suffix}.py'), cfg_options=options))
    runner.model.init_weights()
    assert all(torch.equal(tensor, runner.model.backbone.state_dict()[key]) for key, tensor in weights.items())


def test_refuses_weights_of_another_layout(weights, tmp_path):
    """Bug: nothing of the file fits, mmengine warns in passing, and training starts from noise."""
    torch.save({'model': weights}, tmp_path / 'microsoft.pth')
    renamed = {key.replace('stages.', 'layers.'): tensor for key, tensor in weights.items()}
    torch.save(renamed, tmp_path / 'bare.pth')
    for name in ('microsoft', 'bare'):
        with pytest.raises(
            UserError, match=rf'{name}\.pth does not fit the backbone.*not in it.*type=swinv2_mm\.Pretrained'
        ):
            check_pretrained(config(tmp_path / f'{name}.pth'))


def test_refuses_weights_of_another_size(weights, tmp_path):
    """Bug: tensors of another shape are passed over with a warning."""
    torch.save(weights, tmp_path / 'small.pth')
    with pytest.raises(UserError, match=r'another shape.*arch'):
        check_pretrained(config(tmp_path / 'small.pth', embed_dims=16))


def test_prefix_takes_the_backbone_out_of_a_detector(weights, tmp_path):
    """Bug: without the prefix none of a detector's keys fits the backbone."""
    torch.save({'state_dict': {f'backbone.{key}': tensor for key, tensor in weights.items()}}, tmp_path / 'whole.pth')
    cfg = config(tmp_path / 'whole.pth')
    with pytest.raises(UserError, match=r'model\.backbone\.init_cfg\.type=swinv2_mm\.Pretrained.*finds the prefix'):
        check_pretrained(cfg)
    cfg.model.backbone.init_cfg.type = 'swinv2_mm.Pretrained'
    check_pretrained(cfg)
    for prefix in ('backbone', 'backbone.'):
        check_pretrained(config(tmp_path / 'whole.pth', prefix))


def test_a_corrupt_safetensors_file_is_refused(tmp_path):
    (tmp_path / 'cut.safetensors').write_bytes(b'\x00' * 20)
    with pytest.raises(UserError, match='no safetensors file'):
        check_pretrained(config(tmp_path / 'cut.safetensors'))


@pytest.mark.parametrize(
    ('meta', 'names', 'words'),
    [
        ({'dataset_meta': {'classes': ('bolt', 'nut')}}, ('nut', 'bolt'), "'nut' is label 1 in the weights and 0"),
        ({'CLASSES': ['bolt', 'nut']}, ('washer', 'bolt'), "'bolt' is label 0 in the weights and 1"),
        ({'dataset_meta': {'classes': ('bolt', 'nut')}}, ('bolt', 'nut'), None),
        ({'dataset_meta': {'classes': ('Schraube', 'Mutter')}}, ('bolt', 'nut'), None),
        ({}, ('bolt', 'nut'), None),
    ],
)
def test_weights_for_classes_in_another_order_are_refused(tmp_path, meta, names, words):
    """Bug: a test names predictions after other classes, and ends with code 0. Other names may be a translation."""
    path = tmp_path / 'epoch_1.pth'
    model = torch.nn.Linear(2, 2)
    torch.save({'state_dict': model.state_dict(), 'meta': meta}, path)
    context = Context(('test',), {'test_dataloader.dataset': names}, model=model)
    cfg = Config({'load_from': str(path)})
    if words:
        with pytest.raises(UserError, match=words):
            check_load_from(cfg, context)
    else:
        check_load_from(cfg, context)
        assert bool(context.warnings) == ('Schraube' in str(meta))
    training = Context(('train',), {'train_dataloader.dataset': names}, model=model)
    check_load_from(cfg, training)
    assert training.warnings == []
