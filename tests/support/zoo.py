"""Load the configs of the zoo, and make them small: narrow models, one batch, one iteration."""

from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from swinv2_mm.sizes import get_variant

ROOT = Path(__file__).parents[2] / 'configs'
LEAVES = sorted(ROOT.glob('*.py'))
TEST_ONLY = [path for path in LEAVES if path.stem.endswith('_test')]
TRAINING = [path for path in LEAVES if path not in TEST_ONLY]
SIMMIM = [path for path in LEAVES if path.stem.startswith('simmim')]
CLASSIFIERS = [path for path in LEAVES if path.stem.startswith('imagenet_')]
DENSE = [path for path in LEAVES if path not in SIMMIM + CLASSIFIERS]  # detectors and segmentors

# Data as everyone has them, below data/.
LAID_OUT = [
    *(f'coco/{kind}' for kind in ('train2017', 'val2017')),
    *(f'coco/annotations/instances_{split}2017.json' for split in ('train', 'val')),
    *(
        f'ade/ADEChallengeData2016/{kind}/{split}'
        for kind in ('images', 'annotations')
        for split in ('training', 'validation')
    ),
    'imagenet/train',
    'imagenet/val',
    *(f'shapes/{kind}/{split}' for kind in ('images', 'annotations') for split in ('training', 'validation')),
    *(f'shapes/annotations/instances_{split}.json' for split in ('training', 'validation')),
    'unlabelled',
    'shapes_unlabelled/images/training',
]


def families(paths):
    """Parameters of a test: the last config of each method, which is its smallest or most special; others are slow."""
    last = {path.stem.split('_swinv2_')[0]: path for path in paths}.values()
    return [pytest.param(path, id=path.stem, marks=[] if path in last else pytest.mark.slow) for path in paths]


parse = cache(Config.fromfile)  # half a second each


def framework_of(stem):
    """The package that a config builds on."""
    if stem.startswith(('imagenet_', 'simmim_')):
        return 'mmpretrain' if stem.startswith('imagenet_') else 'mmengine'
    return 'mmseg' if stem.startswith('upernet_') or 'ade20k' in stem else 'mmdet'


def load(path):
    framework = framework_of(path.stem)
    if find_spec(framework) is None:
        pytest.skip(f'{framework} is not installed; see tests/environments.py')
    cfg = deepcopy(parse(path))
    init_default_scope(cfg.default_scope)
    return cfg


# What makes a head slow, by the names of the frameworks: at most so many.
FEW = dict(
    num_layers=1,
    num_queries=10,
    num_dn_queries=2,
    num_points=64,
    nms_pre=20,
    max_per_img=10,
    max_per_image=10,
    num=8,
    fc_out_channels=32,
    feedforward_channels=32,
)
# Channels that have to fit each other; num_feats: half of them, for each axis of a position encoding.
NARROW = dict(
    channels=64, in_channels=64, out_channels=64, feat_channels=64, conv_out_channels=64, embed_dims=64, num_feats=32
)


def dicts(node):
    """Every dictionary in a config, the outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    for item in node if isinstance(node, list | tuple) else ():
        yield from dicts(item)


def shrunken(cfg):
    """Narrow, few blocks, few proposals: the wiring stays, the work goes."""
    model, widths = cfg.model, [32, 64, 128, 256]
    variant = get_variant(model.backbone.arch)
    narrow = {variant.embed_dims * 2**stage: width for stage, width in enumerate(widths)}
    caps = FEW if model.type == 'DINO' else FEW | NARROW  # MMDetection's DINO takes 256 channels for granted
    for node in dicts(model):
        node.update({name: min(node[name], cap) for name, cap in caps.items() if isinstance(node.get(name), int)})
        if isinstance(node.get('in_channels'), list):
            node['in_channels'] = [narrow[width] for width in node['in_channels']]
        if node.get('type') == 'SyncBN':  # it needs a GPU
            node['type'] = 'BN'
        if node.get('type') == 'BatchFixedSizePad':
            node['size'] = (64, 64)
    model.backbone.update(
        embed_dims=32,
        num_heads=(1, 2, 4, 8),
        depths=(1, 1, variant.extra_norm_every or 1, 1),
        window_size=4,
        init_cfg=None,
    )
    if 'auxiliary_head' in model:
        model.auxiliary_head.in_channels = widths[2]
    if cfg.default_scope == 'mmpretrain':
        model.head.in_channels = widths[3]
        model.data_preprocessor = cfg.data_preprocessor
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (64, 64)
        if model.test_cfg.mode == 'slide':  # several crops of the image, too
            model.test_cfg.update(crop_size=(48, 48), stride=(32, 32))
    return model


def shorten(cfg, data):
    """One iteration on the two images of 64 pixels that :mod:`support.tiny_data` has written, and no validation.

    Args:
        cfg: Edited in place.
        data: The folder ``data``.
    """
    for node in dicts(cfg._cfg_dict):
        for name, value in node.items():
            if isinstance(value, str) and value.startswith('data/'):
                node[name] = f'{data}{value.removeprefix("data")}'
    loaders = [loader for loader in (cfg.train_dataloader, cfg.test_dataloader) if loader is not None]
    for loader in loaders:
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    for node in dicts([*loaders, cfg.get('test_pipeline')]):  # MMSegmentation's inference reads the latter
        for name, value in {'scale': (64, 64), 'crop_size': (64, 64), 'ratio_range': (1.0, 1.0)}.items():
            if name in node:
                node[name] = value
        if 'scales' in node:
            node['scales'] = [64] if isinstance(node['scales'][0], int) else [(64, 64)]
    cfg.update(val_cfg=None, val_dataloader=None, val_evaluator=None, log_level='WARNING')
    if cfg.train_cfg is not None:
        length = 'max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'
        cfg.train_cfg[length] = 1
        cfg.train_cfg.pop('dynamic_intervals', None)
        cfg.default_hooks.checkpoint.update(by_epoch=length == 'max_epochs', interval=1)
    cfg.default_hooks.report = None
    cfg.randomness = dict(seed=0)


def data_name(cfg):
    """``coco``, ``ade``, ``imagenet``, ``shapes``, or a folder of pictures without labels."""
    return (cfg.test_dataloader or cfg.train_dataloader).dataset.data_root.split('/')[1]


def number_of_classes(cfg):
    """Of the data set, not of the head."""
    return dict(coco=80, ade=150, imagenet=1000, shapes=3 if cfg.default_scope == 'mmdet' else 4)[data_name(cfg)]


def detection_batch(classes):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    masks = np.zeros((1, 56, 64), np.uint8)
    masks[0, 8:40, 16:56] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(56, 64), ori_shape=(56, 64), scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[16.0, 8.0, 56.0, 40.0]]),
        labels=torch.tensor([classes - 1]),
        masks=BitmapMasks(masks, 56, 64),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    sample.gt_sem_seg = PixelData(sem_seg=torch.randint(0, 182, (1, 56, 64)))  # of COCO-Stuff, for HTC
    return sample


def segmentation_batch(classes):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, 64, 64)))
    return sample


def classification_batch(classes):
    from mmpretrain.structures import DataSample

    sample = DataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
    return sample.set_gt_label(classes - 1)
