"""Every config parses against the installed frameworks, builds, learns and predicts, in a shrunken form."""

import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from support.zoo import (
    DENSE,
    LAID_OUT,
    LEAVES,
    ROOT,
    TEST_ONLY,
    TRAINING,
    data_name,
    detection_batch,
    dicts,
    load,
    number_of_classes,
    segmentation_batch,
    shrunken,
)

from swinv2_mm.checkpoints.catalog import find
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.paths import check_data
from swinv2_mm.engine.runs import prepare_training
from swinv2_mm.errors import UserError

METAFILE = yaml.safe_load((ROOT / 'metafile.yml').read_text())


def whole_backbone(cfg):
    """The backbone in its full size, without memory."""
    with torch.device('meta'):
        return MODELS.build(cfg.model.backbone)


def test_the_metafile_knows_every_leaf():
    """No more and no less, from the index that OpenMMLab's tools read. Prevents: a zoo that hides a config, or promises
    one that is not there.
    """
    index = yaml.safe_load((ROOT.parent / 'model-index.yml').read_text())
    assert index['Import'] == ['configs/metafile.yml']
    models = METAFILE['Models']
    assert len(LEAVES) > 40
    assert sorted(ROOT.parent / model['Config'] for model in models) == LEAVES
    assert [model['Name'] for model in models] == [Path(model['Config']).stem for model in models]
    assert {model['In Collection'] for model in models} == {'SwinV2'} == {c['Name'] for c in METAFILE['Collections']}


@pytest.mark.parametrize('model', METAFILE['Models'], ids=lambda model: model['Name'])
def test_metafile_says_what_the_config_does(model):
    """Data, length and batch are those of the config; what it should reach is what its first lines say.

    Prevents: a table of the zoo that drifts away from the configs, a target without a source, or a figure for what
    nobody trained.
    """
    cfg, facts = load(ROOT.parent / model['Config']), model['Metadata']
    names = {'coco': 'COCO', 'ade': 'ADE20K', 'imagenet': 'ImageNet-1K', 'shapes_unlabelled': 'shapes'}
    assert names.get(data_name(cfg), data_name(cfg)) == facts['Training Data']
    train = cfg.train_cfg or {}
    assert facts.get('Epochs') == train.get('max_epochs')
    assert facts.get('Iterations') == train.get('max_iters')
    assert facts.get('Batch Size') == (cfg.auto_scale_lr.base_batch_size if train else None)
    source = facts['Target Source']
    assert source.startswith('no published row' if facts['Target'] is None else ('paper', 'MODELHUB.md'))
    header = ' '.join(line[2:] for line in (ROOT.parent / model['Config']).read_text().splitlines() if line[:1] == '#')
    figures = re.findall(r'\d+\.\d+', f'{facts["Target"]} {source}')
    assert [figure for figure in figures if figure not in header] == []
    assert facts['Status'] == ('measured' if model.get('Results') else 'not trained here')


@pytest.mark.parametrize('path', DENSE, ids=lambda p: p.stem)
def test_config_learns_and_predicts(path):
    """Loss and gradients are finite and reach the whole backbone; a prediction has the image's size and classes.

    Prevents: a config that dies at the first iteration, or whose heads do not fit the backbone.
    """
    cfg = load(path)
    model = MODELS.build(shrunken(cfg))
    model.init_weights()  # some of MMDetection's parameters are memory as it was found until then
    detection = cfg.default_scope == 'mmdet'
    classes = number_of_classes(cfg)
    sample = (detection_batch if detection else segmentation_batch)(classes)
    data = dict(
        inputs=[torch.randint(0, 256, (3, *sample.img_shape), dtype=torch.uint8) for _ in range(2)],
        data_samples=[sample, deepcopy(sample)],
    )
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
        assert (result.pred_instances.labels < classes).all()
        segments = 'segm' in cfg.val_evaluator.metric
        assert ('masks' in result.pred_instances) == segments
        assert not segments or result.pred_instances.masks.shape[1:] == sample.ori_shape
    else:
        assert result.seg_logits.data.shape == (classes, 64, 64)


@pytest.mark.parametrize('path', TRAINING, ids=lambda p: p.stem)
def test_only_weight_matrices_and_convolutions_decay(path):
    """What mmengine really builds: decay on weight matrices and convolutions of every module, on nothing else.

    Prevents: V1's keys in a V2 schedule, `bias_decay_mult` overlooking q_bias and v_bias, or a key `backbone` that
    switches the exceptions off, which decay the position bias MLP, the logit scales, norms and biases; and a layer-wise
    decay of the learning rate in other recipes than the paper's ablation.
    """
    cfg = load(path)
    model = MODELS.build(shrunken(cfg))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    assert type(optimizer) is torch.optim.AdamW
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))
    exempt = ('cpb_mlp', 'logit_scale', 'mask_token')
    if 'mask2former' in path.stem:  # as in the frameworks' configs
        exempt += ('query_embed', 'query_feat', 'level_embed')
    full = 1e-4 if 'dino' in path.stem else 0.05  # as in MMDetection's DINO; the paper's
    wrong = [
        name
        for name, p in model.named_parameters()
        if decay[id(p)] != (full if p.ndim > 1 and not any(key in name for key in exempt) else 0.0)
    ]
    assert wrong == []
    assert cfg.optim_wrapper.clip_grad.max_norm > 0
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    first, last = (rates[id(p)] for p in (model.backbone.patch_embed.proj.weight, model.backbone.norm3.weight))
    decays = path.stem.startswith('upernet') and not path.stem.endswith(('640', 'shapes'))  # the paper's at 512 pixels
    assert first / last == pytest.approx(0.95**5 if decays else 1)  # above four blocks


@pytest.mark.parametrize(
    ('path', 'base'),
    [
        pytest.param(path, 6e-4 if '_g_' in path.stem else 4e-4 if '_1536' in path.stem else 1e-4, id=path.stem)
        for path in TRAINING
        if any(kind in path.stem for kind in ('_1536', 'mask2former', 'dino'))
    ],
)
def test_the_backbone_of_these_recipes_learns_at_a_tenth_of_the_rate(path, base):
    """The backbone learns at a tenth of the published rate, all else at that rate.

    Prevents: a key of the exceptions from weight decay that changes the rate, or matches a parameter of a head.
    """
    cfg = load(path)
    model = MODELS.build(shrunken(cfg))
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    wrong = [
        name
        for name, p in model.named_parameters()
        if rates[id(p)] != pytest.approx(base * (0.1 if name.startswith('backbone.') else 1))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ('stem', 'per_gpu', 'gpus'),
    [
        ('maskrcnn_swinv2_t', 2, 8),
        ('maskrcnn_swinv2_t_3x', 2, 8),
        ('upernet_swinv2_t', 2, 8),
        ('maskrcnn_swinv2_t_shapes', 4, 1),
        ('upernet_swinv2_t_shapes', 4, 1),
        ('simmim_swinv2_l_192', 128, 16),
        ('simmim_swinv2_t_shapes', 16, 1),
        ('maskrcnn_swinv2_b_w16to32_1536', 2, 32),
        ('maskrcnn_swinv2_l_w16to32_1536_zero1', 1, 64),
        ('maskrcnn_swinv2_g_w32_1536_fsdp2', 1, 96),
        ('upernet_swinv2_b_640', 4, 16),
        ('upernet_swinv2_l_640', 2, 32),
        ('cascade_maskrcnn_swinv2_t_w16_3x', 2, 8),
        ('mask2former_swinv2_t', 2, 8),
        ('mask2former_swinv2_l', 1, 16),
        ('dino_swinv2_t', 2, 8),
        ('imagenet_swinv2_t_256', 64, 16),
        ('mask2former_swinv2_t_ade20k', 2, 8),
        ('htcpp_swinv2_b_w16to32_1536', 2, 32),
        ('htcpp_swinv2_l_w16to32_1536', 1, 64),
    ],
)
def test_auto_scale_lr_knows_the_batch(stem, per_gpu, gpus):
    """The base batch is the published one: images per GPU times GPUs. Prevents: --auto-scale-lr by a wrong factor."""
    cfg = load(ROOT / f'{stem}.py')
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == per_gpu * gpus
    assert not cfg.auto_scale_lr.get('enable')


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_a_leaf_is_a_short_edit_of_its_bases(path):
    """At most 30 lines, and never a second copy of a framework's config. Prevents: configs that drift apart."""
    assert len(path.read_text().splitlines()) <= 30
    assert '_base_' in path.read_text()


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_backbone_needs_no_custom_import(path):
    """Prevents: a config that only works from this folder."""
    cfg = load(path)
    assert cfg.model.backbone.type == 'swinv2_mm.SwinTransformerV2'
    assert 'swinv2_mm' not in str(cfg.get('custom_imports'))  # MMSegmentation's Mask2Former imports MMDetection


@pytest.mark.parametrize('path', DENSE, ids=lambda p: p.stem)
def test_heads_fit_the_whole_backbone(path):
    """Prevents: heads for another size, which the shrunken models of these tests would not show."""
    cfg = load(path)
    backbone = whole_backbone(cfg)
    widths = [backbone.num_features[stage] for stage in backbone.out_indices]
    taken = [node['in_channels'] for node in dicts(cfg.model) if isinstance(node.get('in_channels'), list)]
    assert taken == [widths]
    if 'auxiliary_head' in cfg.model:
        assert cfg.model.auxiliary_head.in_channels == widths[2]


@pytest.mark.parametrize('path', LEAVES, ids=lambda p: p.stem)
def test_windows_are_those_of_the_release(path):
    """The size and the pretrained windows are those of the weights that `init_cfg` names.

    Prevents: a position bias that is scaled for another window; nothing else would show it.
    """
    cfg = load(path)
    backbone = whole_backbone(cfg)
    if cfg.model.backbone.get('init_cfg') is None:
        assert backbone.pretrained_window_sizes == backbone.window_size
        return
    release, _ = find(cfg.model.backbone.init_cfg.checkpoint)
    assert cfg.model.backbone.arch == release.arch
    assert backbone.pretrained_window_sizes == tuple((w, w) for w in release.pretrained_window_sizes)


@pytest.mark.parametrize(
    ('stem', 'window', 'millions'),
    [
        ('maskrcnn_swinv2_b_w16to32_1536', 32, 86.9),
        ('maskrcnn_swinv2_l_w16to32_1536_zero1', 32, 195.2),
        ('maskrcnn_swinv2_g_w32_1536_fsdp2', 32, 2997.9),
        ('htcpp_swinv2_b_w16to32_1536', 32, 86.9),
        ('htcpp_swinv2_l_w16to32_1536', 32, 195.2),
        ('upernet_swinv2_b_640', 40, 86.9),
        ('upernet_swinv2_l_640', 40, 195.2),
        ('upernet_swinv2_l_896_test', 56, 195.2),
    ],
)
def test_recipes_for_large_inputs_keep_windows_and_size_of_the_paper(stem, window, millions):
    """The windows of the paper, its number of parameters (88 M, 197 M and 3 B with the classifier), memory saved.

    Prevents: a leaf that loses one of them when its parent changes.
    """
    cfg = load(ROOT / f'{stem}.py')
    backbone = whole_backbone(cfg)
    assert backbone.window_size == ((window, window),) * 4
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)
    assert all(stage.with_cp for stage in backbone.stages)
    assert {block.attn.attn_chunk for stage in backbone.stages for block in stage.blocks} == {'auto'}
    kind = {'zero1': 'swinv2_mm.Zero1Runner', 'fsdp2': 'swinv2_mm.FSDP2Runner'}.get(stem.rpartition('_')[2])
    assert cfg.get('runner_type') == kind


@pytest.mark.parametrize('path', TRAINING, ids=lambda p: p.stem)
def test_needs_the_usual_data_only(path, tmp_path, monkeypatch):
    """Images and annotations as everyone has them are enough, and for HTC COCO-Stuff, which the message names; the data
    sets and their pipelines can be built.

    Prevents: a training that is refused for panoptic maps it never reads, which a framework's config mentions; a
    transform that does not exist.
    """
    for part in LAID_OUT:
        file = tmp_path / 'data' / part
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch() if file.suffix else file.mkdir()
    monkeypatch.chdir(tmp_path)
    cfg = load(path)
    if path.stem.startswith('htc'):
        with pytest.raises(UserError, match='stuffthingmaps'):
            check_data(cfg, Context(('train', 'val')))
        (tmp_path / 'data/coco/stuffthingmaps/train2017').mkdir(parents=True)
    check_data(cfg, Context(('train', 'val', 'test')))
    for loader in filter(None, (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader)):
        DATASETS.build(dict(loader.dataset, lazy_init=True))


@pytest.mark.parametrize('stem', ['maskrcnn_swinv2_b_w16to32_1536', 'htcpp_swinv2_b_w16to32_1536'])
def test_large_scale_jitter_crops_all_annotations_alike(stem):
    """Images of 0.1 to 2 times 1536 pixels come out, cut to 1536, with their boxes, masks and maps of COCO-Stuff.

    Prevents: a pipeline that stops at the first image, or a map that isn't cut along.
    """
    cfg = load(ROOT / f'{stem}.py')
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    pipeline = cfg.train_dataloader.dataset.pipeline
    assert bool(pipeline[1].get('with_seg')) == stem.startswith('htc')
    transforms = [TRANSFORMS.build(t) for t in pipeline[2:]]
    np.random.seed(0)
    sides = []
    for _ in range(6):
        data = dict(
            img=np.zeros((90, 120, 3), np.uint8),
            img_shape=(90, 120),
            ori_shape=(90, 120),
            img_id=0,
            img_path='',
            gt_bboxes=HorizontalBoxes([[10.0, 10.0, 110.0, 80.0]]),
            gt_bboxes_labels=np.zeros(1, int),
            gt_ignore_flags=np.zeros(1, bool),
            gt_masks=BitmapMasks(np.ones((1, 90, 120), np.uint8), 90, 120),
            gt_seg_map=np.ones((90, 120), np.uint8),
        )
        for transform in transforms:
            data = transform(data)
        sides.append(max(data['inputs'].shape))
        assert data['data_samples'].gt_instances.masks.masks.shape[1:] == data['inputs'].shape[1:]
        assert data['data_samples'].gt_sem_seg.sem_seg.shape[1:] == data['inputs'].shape[1:]
    assert max(sides) == 1536 and min(sides) < 1000


def test_a_config_for_testing_does_not_train(tmp_path):
    """Prevents: a training at the window of the test; and crops larger than the images they are cut from."""
    for path in TEST_ONLY:
        cfg = load(path)
        with pytest.raises(UserError, match='does not describe a training'):
            prepare_training(str(path), work_dir=str(tmp_path))
        short = min(cfg.test_dataloader.dataset.pipeline[1].scale)
        assert cfg.model.test_cfg.crop_size == (short, short)
