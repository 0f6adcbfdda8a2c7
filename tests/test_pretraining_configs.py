"""The configs that pre-train: SimMIM's learn, MMPretrain's learn and classify, with the numbers of their sources."""

from copy import deepcopy

import pytest
import torch
from mmengine.registry import MODELS
from support.zoo import CLASSIFIERS, ROOT, SIMMIM, classification_batch, load, number_of_classes, shrunken


@pytest.mark.parametrize('path', SIMMIM, ids=lambda p: p.stem)
def test_simmim_learns(path):
    """The loss is finite and reaches every parameter. Prevents: a recipe whose mask does not fit its crops."""
    cfg = load(path)
    columns, rows = cfg.train_dataloader.dataset.pipeline[1].scale
    model = MODELS.build(shrunken(cfg))
    batch = model.data_preprocessor({'inputs': [torch.randint(0, 256, (3, rows, columns)) for _ in range(2)]})
    loss = model(**batch, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize('arch', 'tbl')
def test_simmim_is_that_of_the_paper(arch):
    """Mask, target, windows, rate and length are Microsoft's for SwinV2. Prevents: a recipe that drifts from the source
    that its comment names."""
    cfg = load(ROOT / f'simmim_swinv2_{arch}_192.py')
    model, optim = cfg.model, cfg.optim_wrapper
    assert (model.mask_patch_size, model.mask_ratio, model.norm_target) == (32, 0.6, 47)
    assert (model.backbone.window_size, model.backbone.drop_path_rate) == ([12, 12, 12, 6], 0.1)
    assert not model.backbone.get('from_scratch')
    assert optim.optimizer.lr == 1e-4 * cfg.auto_scale_lr.base_batch_size / 512
    assert (optim.optimizer.weight_decay, tuple(optim.optimizer.betas), optim.clip_grad.max_norm) == (
        0.05,
        (0.9, 0.999),
        5,
    )
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.end, steps.milestones, steps.gamma, cfg.train_cfg.max_epochs) == (10, [700], 0.1, 800)


@pytest.mark.parametrize('path', CLASSIFIERS, ids=lambda p: p.stem)
def test_classifier_learns_and_predicts(path):
    """With Mixup and CutMix, the loss reaches every parameter; a prediction has a score per class; the head fits the
    backbone in its full size.

    Bug: a config that dies at the first iteration.
    """
    cfg = load(path)
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    assert [cfg.model.head.in_channels] == [backbone.num_features[stage] for stage in backbone.out_indices]
    model = MODELS.build(shrunken(cfg))
    model.init_weights()
    sample = classification_batch(number_of_classes(cfg))
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    assert len(model.data_preprocessor.batch_augments.augments) == 2
    batch = model.data_preprocessor({'inputs': images, 'data_samples': [sample, deepcopy(sample)]}, True)
    loss = model(**batch, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        result = model.eval().test_step({'inputs': images[:1], 'data_samples': [sample]})[0]
    assert result.pred_score.shape == (1000,)


@pytest.mark.parametrize(('arch', 'drop_path'), [('t', 0.2), ('s', 0.3), ('b', 0.5)])
def test_classifier_is_that_of_microsoft(arch, drop_path):
    """Rate, length, clipping, smoothing, mixing and drop path. Bug: a recipe that drifts from the source that its
    comment names."""
    cfg = load(ROOT / f'imagenet_swinv2_{arch}_256.py')
    model, optim = cfg.model, cfg.optim_wrapper
    assert (model.backbone.window_size, model.backbone.drop_path_rate) == (8, drop_path)
    assert (model.head.loss.label_smooth_val, model.head.loss.mode) == (0.1, 'original')
    assert {mix.type: mix.alpha for mix in model.train_cfg.augments} == {'Mixup': 0.8, 'CutMix': 1.0}
    assert optim.optimizer.lr == 5e-4 * cfg.auto_scale_lr.base_batch_size / 512
    assert (optim.optimizer.weight_decay, optim.clip_grad.max_norm) == (0.05, 5)
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.end, cosine.begin, cosine.end, cfg.train_cfg.max_epochs) == (20, 20, 300, 300)
    assert cosine.eta_min == pytest.approx(5e-6 * 1024 / 512)
    assert cfg.test_dataloader.dataset.pipeline[1].scale == 256 * 256 // 224
