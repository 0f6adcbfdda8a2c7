"""Configs in pure Python, which import what they build: of the tiny training, a detector and a segmentor."""

from pathlib import Path

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


def write(text, name='lazy.py'):
    path = Path(name)
    path.write_text(text)
    return path


def framework_config(base, shapes):
    """``lazy.py``, which puts this backbone into a ``'detector'`` or a ``'segmentor'``, in the current folder."""
    Path('data').mkdir()
    Path('data/shapes').symlink_to(shapes)
    write(SCHEDULE, 'schedule.py')
    write({'detector': DETECTOR, 'segmentor': SEGMENTOR}[base], f'{base}.py')
    return write(BACKBONE.format(base=base))
