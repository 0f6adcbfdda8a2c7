"""Every config parses against the installed frameworks, builds, learns and predicts, in a shrunken form."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[1] / 'configs'
LEAVES = sorted(ROOT.glob('*.py'))


def load(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def shrunken(cfg):
    """One block per stage, few proposals: the wiring stays, the work goes."""
    model = cfg.model
    model.backbone.update(depths=(1, 1, 1, 1), window_size=4)
    if cfg.default_scope == 'mmdet':
        model.train_cfg.rpn_proposal.update(nms_pre=20, max_per_img=10)
        model.train_cfg.rcnn.sampler.num = 8
        model.test_cfg.rpn.update(nms_pre=20, max_per_img=10)
    else:
        for head in (model.decode_head, model.auxiliary_head):
            head.norm_cfg = dict(type='BN')  # SyncBN needs a GPU
        model.data_preprocessor.size = (64, 64)
    return model


def detection_batch(classes):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    masks = np.zeros((1, 64, 64), np.uint8)
    masks[0, 8:40, 16:56] = 1
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0),
                                         pad_shape=(64, 64), batch_input_shape=(64, 64)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[16.0, 8.0, 56.0, 40.0]]),
                                       labels=torch.tensor([classes - 1]), masks=BitmapMasks(masks, 64, 64))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def segmentation_batch(classes):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), pad_shape=(64, 64)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, classes, (1, 64, 64)))
    return sample


def test_there_are_configs():
    """Prevents: a glob that finds nothing and tests that pass vacuously."""
    assert {'maskrcnn_swinv2_t', 'maskrcnn_swinv2_t_3x', 'upernet_swinv2_t', 'maskrcnn_swinv2_t_shapes',
            'upernet_swinv2_t_shapes'} <= {path.stem for path in LEAVES}


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_config_learns_and_predicts(path):
    """Loss and gradients are finite and reach the whole backbone; a prediction has the image's size and classes.

    Prevents: a config that dies at the first iteration, or whose heads do not fit the backbone.
    """
    cfg = load(path)
    model = MODELS.build(shrunken(cfg))
    detection = cfg.default_scope == 'mmdet'
    classes = (cfg.model.roi_head.bbox_head if detection else cfg.model.decode_head).num_classes
    sample = (detection_batch if detection else segmentation_batch)(classes)
    data = dict(inputs=[torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)] * 2, data_samples=[sample] * 2)
    model.train()
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    total, _ = model.parse_losses(losses)
    total.backward()
    assert total.isfinite()
    assert [n for n, p in model.backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    model.eval()
    with torch.no_grad():
        result = model.test_step(dict(inputs=data['inputs'][:1], data_samples=[sample]))[0]
    if detection:
        assert result.pred_instances.masks.shape[1:] == (64, 64)
        assert (result.pred_instances.labels < classes).all()
    else:
        assert result.seg_logits.data.shape == (classes, 64, 64)


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_optimizer_groups(path):
    """What mmengine really builds: decay on weight matrices and convolutions of every module, on nothing else.

    Prevents: V1's keys in a V2 schedule, or `bias_decay_mult` overlooking q_bias and v_bias, which decay the position
    bias MLP, the logit scales and biases.
    """
    cfg = load(path)
    model = MODELS.build(shrunken(cfg))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert type(optimizer) is torch.optim.AdamW
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))
    wrong = [name for name, p in model.named_parameters()
             if decay[id(p)] != (0.05 if p.ndim > 1 and 'cpb_mlp' not in name and 'logit_scale' not in name else 0.0)]
    assert wrong == []
    assert cfg.optim_wrapper.clip_grad.max_norm > 0


@pytest.mark.parametrize(('stem', 'per_gpu', 'gpus'), [('maskrcnn_swinv2_t', 2, 8), ('maskrcnn_swinv2_t_3x', 2, 8),
                                                      ('upernet_swinv2_t', 2, 8), ('maskrcnn_swinv2_t_shapes', 4, 1),
                                                      ('upernet_swinv2_t_shapes', 4, 1)])
def test_auto_scale_lr_knows_the_batch(stem, per_gpu, gpus):
    """The base batch is the published one: images per GPU times GPUs. Prevents: --auto-scale-lr by a wrong factor."""
    cfg = load(ROOT / f'{stem}.py')
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == per_gpu * gpus
    assert cfg.auto_scale_lr.enable is False


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_leaves_are_edits(path):
    """At most 30 lines, and never a second copy of a framework's config. Prevents: configs that drift apart."""
    assert len(path.read_text().splitlines()) <= 30
    assert '_base_' in path.read_text()


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_backbone_needs_no_custom_import(path):
    """Prevents: a config that only works from this folder."""
    cfg = load(path)
    assert cfg.model.backbone.type == 'swinv2_mm.SwinTransformerV2'
    assert 'custom_imports' not in cfg
