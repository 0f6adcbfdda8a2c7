"""Classes and import paths in a config become registered names, whoever wrote them and wherever they stand."""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import TRANSFORMS, Registry
from support.lazy_configs import write
from support.tiny_training import TinyRegressor, write_config

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine import EpochSeedHook, LayerDecayOptimWrapperConstructor, Pretrained
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.config.lazy import name_types
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')


@pytest.mark.parametrize(
    ('scope', 'spelt', 'name'),
    [
        ('mmengine', SwinTransformerV2, 'swinv2_mm.SwinTransformerV2'),
        ('mmengine', 'swinv2_mm.models.swin_v2.SwinTransformerV2', 'swinv2_mm.SwinTransformerV2'),
        ('mmengine', 'swinv2_mm.SwinTransformerV2', 'swinv2_mm.SwinTransformerV2'),
        ('mmdet', EpochSeedHook, 'swinv2_mm.EpochSeedHook'),
        ('mmengine', Pretrained, 'swinv2_mm.Pretrained'),
        ('mmdet', PretrainedInit, 'Pretrained'),
        ('mmdet', CheckpointHook, 'CheckpointHook'),
        ('mmdet', 'mmengine.hooks.CheckpointHook', 'CheckpointHook'),
        ('mmdet', 'mmengine.CheckpointHook', 'mmengine.CheckpointHook'),
        ('mmengine', torch.optim.AdamW, 'AdamW'),
        ('mmengine', 'torch.optim.adamw.AdamW', 'AdamW'),
        ('mmengine', pseudo_collate, 'pseudo_collate'),
        ('mmdet', 'mmdet.models.detectors.MaskRCNN', 'MaskRCNN'),
        ('mmdet', 'mmdet.MaskRCNN', 'mmdet.MaskRCNN'),
        ('mmseg', 'mmdet.models.detectors.MaskRCNN', 'mmdet.MaskRCNN'),
        # Two classes of one name: the framework's hides mmcv's.
        ('mmdet', 'mmdet.datasets.transforms.LoadAnnotations', 'LoadAnnotations'),
        ('mmdet', 'mmcv.transforms.LoadAnnotations', 'mmengine.LoadAnnotations'),
        ('mmdet', 'mmcv.transforms.LoadImageFromFile', 'LoadImageFromFile'),
        ('mmdet', 'mmcv.ops.nms', 'nms'),
        ('mmdet', 'mmcv.ops.RoIAlign', 'RoIAlign'),
        ('mmdet', torch.nn.BatchNorm2d, 'BN'),
        # mmcv registers these, and plain mmengine need not import it.
        ('mmengine', torch.nn.BatchNorm2d, 'torch.nn.modules.batchnorm.BatchNorm2d'),
        ('mmengine', 'torch.nn.BatchNorm2d', 'torch.nn.BatchNorm2d'),
        ('mmengine', 'mmcv.transforms.LoadImageFromFile', 'mmcv.transforms.LoadImageFromFile'),
        ('mmdet', torch.nn.Softmax, 'torch.nn.modules.activation.Softmax'),
        # A class of the user's own is registered by its import, which a name would not bring about.
        ('mmengine', TinyRegressor, 'support.tiny_training.TinyRegressor'),
        ('mmengine', 'TinyRegressor', 'TinyRegressor'),
        ('mmengine', 'no_package.Thing', 'no_package.Thing'),
        ('mmengine', 'torch.optim.NoOptimizer', 'torch.optim.NoOptimizer'),
    ],
)
def test_types_get_the_names_that_the_checks_compare(scope, spelt, name):
    """Bug: `type=CheckpointHook`, or an import path of it, is not recognised, and saving is not crash-safe."""
    import mmdet.registry  # noqa: F401

    cfg = name_types(Config({'default_scope': scope, 'model': [{'type': 'A', 'parts': ({'type': spelt},)}]}))
    assert cfg.to_dict() == {'default_scope': scope, 'model': [{'type': 'A', 'parts': ({'type': name},)}]}


def test_names_types_wherever_they_are():
    """Bug: types under other keys than `type` stay classes, and the config cannot be saved."""
    from swinv2_mm.engine.sharding.fsdp2 import FSDP2Runner

    cfg = name_types(
        Config(
            {
                'runner_type': FSDP2Runner,
                'LayerDecay': LayerDecayOptimWrapperConstructor,
                'os': os,
                'here': os.getcwd,
                'optim_wrapper': {'constructor': LayerDecayOptimWrapperConstructor, 'dtype': torch.bfloat16},
                'train_dataloader': {
                    'collate_fn': pseudo_collate,
                    'note': 'torch.optim.AdamW',
                    'empty': ({}, [], ()),
                    'root': Path('data'),
                },
            }
        ),
        ['runner_type', 'optim_wrapper'],
    )
    assert cfg.to_dict() == {
        'runner_type': 'swinv2_mm.FSDP2Runner',
        'optim_wrapper': {'constructor': 'swinv2_mm.LayerDecayOptimWrapperConstructor', 'dtype': 'bfloat16'},
        'train_dataloader': {
            'collate_fn': {'type': 'pseudo_collate'},
            'note': 'torch.optim.AdamW',
            'empty': ({}, [], ()),
            'root': 'data',
        },
    }
    for nameless in (lambda: None, partial(SwinTransformerV2), os):
        with pytest.raises(UserError, match=r'^model.hooks.0.type=.*cannot be saved with the run'):
            name_types(Config({'model': {'hooks': [{'type': nameless}]}}))


def test_a_text_config_keeps_its_scope_and_may_spell_types_as_paths(tmp_path, monkeypatch):
    """Bugs: a path on the command line, or a class, is not recognised; a scope that a config does without is set."""
    monkeypatch.syspath_prepend(tmp_path)
    config = write_config(tmp_path)
    cfg = load_config(config)
    assert cfg.to_dict() == Config.fromfile(config).to_dict() and cfg.text == Config.fromfile(config).text
    cfg = load_config(config, {'optim_wrapper.optimizer.type': 'torch.optim.SGD'})
    assert cfg.optim_wrapper.optimizer.type == 'SGD'
    write("work_dir = 'run'", 'base.py')
    cfg = load_config(
        write(
            "_base_ = ['base.py']\nfrom os import getcwd\nfrom mmdet.models import MaskRCNN\n"
            "default_scope = 'mmdet'\nmodel = dict(type=MaskRCNN)",
            'class.py',
        )
    )
    assert cfg.to_dict() == {'default_scope': 'mmdet', 'model': {'type': 'MaskRCNN'}, 'work_dir': 'run'}
    cfg = load_config(write("model = dict(type='mmdet.MaskRCNN')", 'scoped.py'))
    assert cfg.to_dict() == {'model': {'type': 'mmdet.MaskRCNN'}}
    write("raise ValueError('not for import')", 'broken_parts.py')
    assert load_config(write("model = dict(type='broken_parts.A')", 'broken.py')).model.type == 'broken_parts.A'
    cfg = load_config(write("model = dict(type='mmdet.models.MaskRCNN')", 'path.py'))
    assert cfg.to_dict() == {'default_scope': 'mmdet', 'model': {'type': 'MaskRCNN'}}


def test_what_a_lazy_config_imports_may_be_a_value(tmp_path, monkeypatch):
    """Bug: an imported constant is saved as the text of its import path; a model derived from a class has no scope."""
    (tmp_path / 'own_parts.py').write_text(
        'from mmdet.models import MaskRCNN\nCLASSES = ("a", "b")\nSETTINGS = {"kind": MaskRCNN}\n'
        'class Own(MaskRCNN):\n    pass\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load_config(
        write(
            'import own_parts\nfrom sys import stdout\nfrom own_parts import CLASSES\n'
            'model = dict(type=own_parts.Own, classes=CLASSES, settings=own_parts.SETTINGS)\n'
        )
    )
    assert cfg.to_dict() == {
        'default_scope': 'mmdet',
        'model': {'type': 'own_parts.Own', 'classes': ('a', 'b'), 'settings': {'kind': 'MaskRCNN'}},
    }
    assert Config.fromstring(cfg.pretty_text, '.py').to_dict() == cfg.to_dict()


def test_a_name_is_not_that_of_another_class_which_is_imported_later(tmp_path, monkeypatch):
    """Bug: mmcv's `LoadAnnotations` becomes MMDetection's, if that was not imported yet when the config was read."""
    from mmcv.transforms import LoadAnnotations

    (tmp_path / 'late_parts.py').write_text(
        'from mmengine.registry import TRANSFORMS\n'
        "@TRANSFORMS.children['late_parts'].register_module()\nclass LoadAnnotations:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(TRANSFORMS, '_children', dict(TRANSFORMS.children))
    Registry('transform', parent=TRANSFORMS, scope='late_parts', locations=['late_parts'])
    cfg = name_types(Config({'default_scope': 'late_parts', 'pipeline': [{'type': LoadAnnotations}]}))
    assert cfg.pipeline[0].type == 'mmengine.LoadAnnotations'
