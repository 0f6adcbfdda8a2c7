"""Pure-Python configs, which import what they build, train, test and resume as others do, and mistakes have keys."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.hooks import CheckpointHook
from mmengine.model.weight_init import PretrainedInit
from mmengine.registry import TRANSFORMS, Registry
from support.tiny_fixtures import ROOT
from support.tiny_training import TinyRegressor, write_config

from swinv2_mm import SwinTransformerV2
from swinv2_mm.datasets import ShapesSpec, write_shapes
from swinv2_mm.engine import EpochSeedHook, LayerDecayOptimWrapperConstructor, Pretrained
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.config.lazy import name_types
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')

# A module, a function and a variable beside what the runner knows: each broke the config that a run saves.
TINY = """
import os

from mmengine.config import read_base
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import CheckpointHook
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from mmengine.visualization import LocalVisBackend, Visualizer
from support.tiny_training import TinyError, TinyImages, TinyRegressor
from torch.optim import AdamW

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine import EpochSeedHook


def loader(batch_size, shuffle):
    return dict(
        batch_size=batch_size, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=shuffle),
        collate_fn=pseudo_collate, dataset=dict(type=TinyImages, augment=shuffle))


widths = dict(tiny=[dict(type=SwinTransformerV2, embed_dims=8)])
backend_args = None
default_scope = None
model = dict(
    type=TinyRegressor, noise=True,
    backbone=dict(
        **widths['tiny'][0], depths=(1, 2), num_heads=(1, 2), window_size=4, drop_path_rate=0.5, out_indices=(1,)))
train_dataloader = loader(2, True)
val_dataloader = loader(4, False)
test_dataloader = val_dataloader
val_evaluator = [dict(type=TinyError)]
test_evaluator = val_evaluator
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-2), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type=LinearLR, start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type=MultiStepLR, milestones=[2], gamma=0.5, by_epoch=True),
]
train_cfg = dict(by_epoch=True, max_epochs=3, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    checkpoint=dict(type=CheckpointHook, interval=1, backend_args=backend_args, save_best='error', rule='less'),
    report=None)
custom_hooks = [dict(type=EpochSeedHook)]
visualizer = dict(type=Visualizer, vis_backends=[dict(type=LocalVisBackend)], name='visualizer')
randomness = dict(seed=7)
log_level = 'WARNING'
"""

SCHEDULE = """
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.dataset.sampler import DefaultSampler
from mmengine.optim.optimizer.optimizer_wrapper import OptimWrapper
from mmengine.runner.loops import EpochBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from torch.optim.sgd import SGD

data_root = 'data/shapes/'
default_scope = None
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1, val_interval=1)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.02, momentum=0.9, weight_decay=0.0001))
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1), checkpoint=dict(type=CheckpointHook, interval=1), report=None)
vis_backends = [dict(type=LocalVisBackend)]
"""

# As MMDetection's own: operators of mmcv, layers of torch and functions are types, and one type is text all the same.
DETECTOR = """
from mmcv.ops import RoIAlign, nms
from mmcv.transforms.loading import LoadImageFromFile
from mmdet.datasets.samplers.batch_sampler import AspectRatioBatchSampler
from mmdet.datasets.transforms.formatting import PackDetInputs
from mmdet.datasets.transforms.loading import LoadAnnotations
from mmdet.datasets.transforms.transforms import Resize
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.evaluation.metrics.coco_metric import CocoMetric
from mmdet.models.backbones.resnet import ResNet
from mmdet.models.data_preprocessors.data_preprocessor import DetDataPreprocessor
from mmdet.models.dense_heads.rpn_head import RPNHead
from mmdet.models.detectors.mask_rcnn import MaskRCNN
from mmdet.models.losses.cross_entropy_loss import CrossEntropyLoss
from mmdet.models.losses.smooth_l1_loss import L1Loss
from mmdet.models.necks.fpn import FPN
from mmdet.models.roi_heads.bbox_heads.convfc_bbox_head import Shared2FCBBoxHead
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors.single_level_roi_extractor import SingleRoIExtractor
from mmdet.models.roi_heads.standard_roi_head import StandardRoIHead
from mmdet.models.task_modules.assigners.max_iou_assigner import MaxIoUAssigner
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators.anchor_generator import AnchorGenerator
from mmdet.models.task_modules.samplers.random_sampler import RandomSampler
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import read_base
from mmengine.model.weight_init import PretrainedInit
from torch.nn import BatchNorm2d

with read_base():
    from .schedule import *

default_hooks.update(visualization=dict(type=DetVisualizationHook))
visualizer = dict(type=DetLocalVisualizer, vis_backends=vis_backends, name='visualizer')
coder = dict(type=DeltaXYWHBBoxCoder, target_means=[0.0] * 4, target_stds=[1.0] * 4)
assigner = dict(type=MaxIoUAssigner, pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, ignore_iof_thr=-1)
sampler = dict(type=RandomSampler, num=16, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)


def extractor(side):
    return dict(
        type=SingleRoIExtractor, roi_layer=dict(type=RoIAlign, output_size=side, sampling_ratio=0), out_channels=16,
        featmap_strides=[4, 8, 16, 32])


model = dict(
    type=MaskRCNN,
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        pad_mask=True, pad_size_divisor=32),
    backbone=dict(
        type=ResNet, depth=50, num_stages=4, norm_cfg=dict(type=BatchNorm2d, requires_grad=True),
        init_cfg=dict(type=PretrainedInit, checkpoint='torchvision://resnet50')),
    neck=dict(type=FPN, in_channels=[32, 64, 128, 256], out_channels=16, num_outs=5),
    rpn_head=dict(
        type=RPNHead, in_channels=16, feat_channels=16, bbox_coder=coder,
        anchor_generator=dict(type=AnchorGenerator, scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        loss_cls=dict(type=CrossEntropyLoss, use_sigmoid=True), loss_bbox=dict(type=L1Loss)),
    roi_head=dict(
        type=StandardRoIHead,
        bbox_roi_extractor=extractor(7),
        bbox_head=dict(
            type=Shared2FCBBoxHead, in_channels=16, fc_out_channels=16, num_classes=3, bbox_coder=coder,
            loss_cls=dict(type=CrossEntropyLoss), loss_bbox=dict(type=L1Loss)),
        mask_roi_extractor=extractor(14),
        mask_head=dict(
            type=FCNMaskHead, num_convs=1, in_channels=16, conv_out_channels=16, num_classes=3,
            norm_cfg=dict(type=BatchNorm2d), loss_mask=dict(type=CrossEntropyLoss, use_mask=True))),
    train_cfg=dict(
        rpn=dict(assigner=assigner, sampler=sampler, allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(nms_pre=20, max_per_img=10, nms=dict(type=nms, iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(assigner=assigner, sampler=sampler, mask_size=28, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(nms_pre=20, max_per_img=10, nms=dict(type=nms, iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.0, nms=dict(type=nms, iou_threshold=0.5), max_per_img=5, mask_thr_binary=0.5)))


def loader(split, **settings):
    return dict(
        batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False), **settings,
        dataset=dict(
            type='CocoDataset', data_root=data_root, metainfo=dict(classes=('disk', 'ring', 'star')),
            ann_file=f'annotations/instances_{split}.json', data_prefix=dict(img=f'images/{split}/'),
            pipeline=[
                dict(type=LoadImageFromFile), dict(type=LoadAnnotations, with_bbox=True, with_mask=True),
                dict(type=Resize, scale=(64, 64), keep_ratio=True),
                dict(type=PackDetInputs,
                     meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))


train_dataloader = loader('training', batch_sampler=dict(type=AspectRatioBatchSampler))
val_dataloader = loader('validation')
test_dataloader = val_dataloader
val_evaluator = dict(
    type=CocoMetric, ann_file=data_root + 'annotations/instances_validation.json', metric=['bbox', 'segm'])
test_evaluator = val_evaluator
"""

BACKBONE = """
from mmengine.config import read_base

from swinv2_mm.models import SwinTransformerV2

with read_base():
    from .{base} import *

model.merge(dict(backbone=dict(
    _delete_=True, type=SwinTransformerV2, embed_dims=32, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=8)))
"""

SEGMENTOR = """
from mmcv.transforms.loading import LoadImageFromFile
from mmengine.config import read_base
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor, UPerHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.visualization import SegLocalVisualizer
from torch import nn

with read_base():
    from .schedule import *

default_hooks.update(visualization=dict(type=SegVisualizationHook))
visualizer = dict(type=SegLocalVisualizer, vis_backends=vis_backends, name='visualizer')
head = dict(
    channels=16, num_classes=4, align_corners=False, norm_cfg=dict(type=nn.BatchNorm2d), act_cfg=dict(type=nn.ReLU),
    loss_decode=dict(type=CrossEntropyLoss))
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(
        type=SegDataPreProcessor, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True,
        size=(64, 64)),
    backbone=dict(),
    decode_head=dict(type=UPerHead, in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3], **head),
    auxiliary_head=dict(type=FCNHead, in_channels=128, in_index=2, **head),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))


def loader(split):
    return dict(
        batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
        dataset=dict(
            type=BaseSegDataset, data_root=data_root, img_suffix='.png', reduce_zero_label=True,
            metainfo=dict(classes=('background', 'disk', 'ring', 'star'),
                          palette=[[40, 40, 40], [230, 80, 60], [70, 160, 230], [240, 200, 60]]),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            pipeline=[
                dict(type=LoadImageFromFile), dict(type=LoadAnnotations, reduce_zero_label=True),
                dict(type=PackSegInputs)]))


train_dataloader = loader('training')
val_dataloader = loader('validation')
test_dataloader = val_dataloader
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = val_evaluator
"""


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(ShapesSpec(size=64, num_train=4, num_val=2), folder)
    return folder


def write(text, name='lazy.py'):
    path = Path(name)
    path.write_text(text)
    return path


def framework_config(base, shapes, backbone=BACKBONE):
    Path('data').mkdir()
    Path('data/shapes').symlink_to(shapes)
    write(SCHEDULE, 'schedule.py')
    write({'detector': DETECTOR, 'segmentor': SEGMENTOR}[base], f'{base}.py')
    return write(backbone.format(base=base))


def saved(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def check_saved(checkpoint, file):
    """The config beside a checkpoint and the one in it read back, to the same, and need no more than text."""
    cfg, text = Config.fromfile(file), saved(checkpoint)['meta']['cfg']
    assert cfg.to_dict() == Config.fromstring(text, '.py').to_dict() == load_config(file).to_dict()
    assert '<' not in text and '_delete_' not in text
    return cfg


def test_a_lazy_config_trains_and_resumes_to_the_weights_of_the_same_text_config(run_tool, tmp_path):
    """Bugs: the config could not be saved with the run; a run by classes, or its resumption, had other settings."""
    lazy, text = write(TINY), write_config(tmp_path)
    assert run_tool('train', lazy, '--work-dir', 'lazy') == 0
    assert run_tool('train', lazy, '--work-dir', 'resumed', '--resume', 'lazy/epoch_1.pth') == 0
    assert run_tool('train', text, '--work-dir', 'text') == 0
    lazy, resumed, text = (saved(f'{folder}/epoch_3.pth')['state_dict'] for folder in ('lazy', 'resumed', 'text'))
    for key in text:
        assert torch.equal(lazy[key], text[key]) and torch.equal(resumed[key], text[key])
    cfg = check_saved('lazy/epoch_3.pth', 'lazy/lazy.py')
    assert cfg.default_hooks.checkpoint.type == 'swinv2_mm.CheckpointHook'
    assert not {'os', 'loader', 'AdamW'} & cfg.keys()


def test_the_saved_config_is_one_to_go_on_with(run_tool):
    """Bug: what a run had saved as its config could not be tested with, or trained from, or drew a report again."""
    assert run_tool('train', write(TINY), '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=1') == 0
    for config in ('lazy.py', 'run/lazy.py'):
        assert (
            run_tool(
                'test', config, 'run/epoch_1.pth', '--work-dir', 'test', '--cfg-options', 'test_dataloader.batch_size=2'
            )
            == 0
        )
    assert (
        run_tool(
            'train',
            'run/lazy.py',
            '--work-dir',
            'run',
            '--resume',
            '--cfg-options',
            'train_cfg.max_epochs=2',
        )
        == 0
    )
    assert not Path('run/report.png').exists()


def test_a_lazy_detector_does_all_that_one_of_text_does(run_tool, shapes):
    """Bug: `Failed to format the config file`, or hooks, precision and pictures that do not know a class as a type."""
    config = framework_config('detector', shapes)
    assert run_tool('train', config, '--work-dir', 'run', '--amp') == 0
    cfg = check_saved('run/epoch_1.pth', 'run/lazy.py')
    assert (cfg.default_scope, cfg.model.type, cfg.model.backbone.type) == (
        'mmdet',
        'MaskRCNN',
        'swinv2_mm.SwinTransformerV2',
    )
    assert 'swinv2_mm.Float32BoxesHook' in [hook.type for hook in cfg.custom_hooks]
    assert (
        run_tool(
            'test',
            config,
            'run/epoch_1.pth',
            '--work-dir',
            'test',
            '--show-dir',
            'pictures',
            '--cfg-options',
            'test_dataloader.batch_size=1',
        )
        == 0
    )
    assert len([*Path('pictures').glob('*.png')]) == 2
    assert (
        run_tool('train', config, '--work-dir', 'run', '--amp', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
        == 0
    )
    # A process that imports nothing of ours: names and paths have to be enough.
    code = (
        'import sys\nfrom mmdet.apis import inference_detector, init_detector\n'
        "model = init_detector('run/lazy.py', 'run/epoch_2.pth', device='cpu')\n"
        'print(len(inference_detector(model, sys.argv[1]).pred_instances))'
    )
    image = next((shapes / 'images' / 'validation').iterdir())
    done = subprocess.run(
        [sys.executable, '-c', code, image], capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=str(ROOT))
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == 5


def test_a_lazy_segmentor_does_all_that_one_of_text_does(run_tool, shapes):
    """Bug: the same in MMSegmentation: its scope was not known, and `--out` and `--show-dir` depend on it."""
    config = framework_config('segmentor', shapes)
    assert run_tool('train', config, '--work-dir', 'run') == 0
    cfg = check_saved('run/epoch_1.pth', 'run/lazy.py')
    assert (cfg.default_scope, cfg.model.decode_head.norm_cfg.type) == ('mmseg', 'BN')
    assert (
        run_tool('test', config, 'run/epoch_1.pth', '--work-dir', 'test', '--show-dir', 'pictures', '--out', 'maps')
        == 0
    )
    names = {path.name for path in (shapes / 'images' / 'validation').iterdir()}
    assert {path.name for path in Path('pictures').iterdir()} == {path.name for path in Path('maps').iterdir()} == names
    assert cv2.imread(str(next(Path('maps').iterdir()))).shape == (64, 64, 3)
    assert run_tool('train', config, '--work-dir', 'run', '--resume', '--cfg-options', 'train_cfg.max_epochs=2') == 0


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        (
            "model['backbone'].update(window_sise=4)",
            "model.backbone: SwinTransformerV2 got an unexpected .*'window_sise' .Did you mean window_size",
        ),
        (
            "default_hooks['checkpoint'].update(intervall=1)",
            'default_hooks.checkpoint.intervall: save_checkpoint has no such argument',
        ),
        ('custom_hooks.append(dict(type=EpochSeedHook, sede=1))', 'custom_hooks.1.sede: EpochSeedHook has no such'),
        ("optim_wrapper['optimizer'].update(lrr=1)", 'optim_wrapper.optimizer.lrr: AdamW has no such argument'),
        ('custom_hooks.append(dict(type=loader))', '^error: custom_hooks.1.type=<function loader'),
        ('custom_hooks.append(dict(type=os))', "^error: custom_hooks.1.type=<module 'os'"),
        ('optim_wrapper.update(paramwise_cfg=dict(decay_rate=0.9))', 'paramwise_cfg.decay_rate has no effect'),
        (
            'from swinv2_mm.engine import EpochSeedHok\ncustom_hooks.append(dict(type=EpochSeedHok))',
            'Failed to import EpochSeedHok from swinv2_mm.engine in',
        ),
        ('from mmpretrain.models import ImageClassifier\nmodel.update(type=ImageClassifier)', 'builds on MMPretrain'),
        (
            "from swinv2_mm.engine import Pretrained\nmodel['backbone'].update("
            "init_cfg=dict(type=Pretrained, checkpoint='gone.pth'))",
            'model.backbone.init_cfg: .*gone.pth',
        ),
        (
            "from mmengine.model.weight_init import PretrainedInit\nmodel['backbone'].update("
            "init_cfg=dict(type=PretrainedInit, checkpoint='gone.pth'))",
            'model.backbone.init_cfg.checkpoint: .*gone',
        ),
        ('nothing = unknown', "lazy.py, line [0-9]+ cannot be read: NameError: name 'unknown'"),
        ('with read_base():\n    from .nowhere import *', 'nowhere.py not found'),
    ],
)
def test_a_mistake_is_told_by_its_key_before_anything_is_written(line, told, run_tool, capsys):
    """Bugs: a traceback through mmengine; classes for types that the dry run could not compare, and so passed."""
    assert run_tool('train', write(f'{TINY}{line}\n'), '--work-dir', 'run') == 2
    text = capsys.readouterr().err
    assert re.search(told, text), text
    assert not Path('run').exists()


def test_a_mistake_in_an_inherited_lazy_config_is_told_by_its_file_and_line():
    """Bug: the file that was passed is blamed for what it inherits."""
    write('a = 1\nb = unknown\n', 'base.py')
    with pytest.raises(UserError, match=r"base.py, line 2 \(inherited by lazy.py\).*NameError.*'unknown'"):
        load_config(write('from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'))


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
