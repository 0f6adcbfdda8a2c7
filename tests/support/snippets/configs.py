"""Configs of the documentation are built as a run builds them; pieces in every config that they may be pasted into."""

import ast

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from support.snippets import whole_config
from swinv2_mm.checkpoints.catalog import find
from swinv2_mm.engine.checks import DRY_RUN, run_checks
from swinv2_mm.engine.checks.model import build_model
from swinv2_mm.engine.checks.optimizer import build_optimizer
from swinv2_mm.engine.config.form import check_form


def bases(desk):
    """Configs with this backbone that a piece may be pasted into: ours, and a reader's on those of the frameworks."""
    for scope in ('mmdet', 'mmseg'):
        (desk / f'on_{scope}.py').write_text(whole_config(scope))
    return ['configs/maskrcnn_swinv2_t.py', 'configs/upernet_swinv2_t.py', 'on_mmdet.py', 'on_mmseg.py']


def configs_of(block, desk):
    """The config of a block; of a piece one for each base."""
    names = [target.id for node in ast.parse(block.text).body for target in node.targets]
    text = block.text
    if names == ['init_cfg']:  # an argument of the backbone
        text = f'model = dict(backbone=dict({text}))'
    texts = [text] if '_base_' in names else [f'_base_ = {base!r}\n{text}' for base in bases(desk)]
    return [parse(text, desk, f'snippet_{index}.py') for index, text in enumerate(texts)]


def parse(text, desk, name):
    (desk / name).write_text(text)
    return Config.fromfile(desk / name)


def check_configs(block, desk):
    """The optimizer's groups, too, where the block is about the optimizer."""
    for cfg in configs_of(block, desk):
        check_config(cfg, 'optim_wrapper' in block.text)


def check_config(cfg, optimizer):
    """Build what a run of the config would build, without memory, and look at it.

    Args:
        cfg: The config.
        optimizer: The block is about the optimizer, so look at its groups.
    """
    check_form(cfg)
    splits = tuple(split for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader'))
    run_checks(cfg, splits, DRY_RUN)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg.model)
        check_heads(model)
        check_weights_of(cfg.model.backbone)
        if optimizer:
            layer_decay = 'LayerDecay' in cfg.optim_wrapper.get('constructor', '')
            check_groups(model, build_optimizer(cfg.optim_wrapper, model).optimizer, layer_decay)
            check_schedule(cfg)


def check_heads(model):
    """What trains only takes the maps, too: the auxiliary heads of MMSegmentation, which a prediction leaves out."""
    backbone = model.backbone
    maps = [torch.empty(1, backbone.num_features[i], 8, 8, device='meta') for i in backbone.out_indices]
    if getattr(model, 'with_auxiliary_head', False):
        model.auxiliary_head.eval()(maps)


def check_weights_of(backbone):
    """The weights exist, are for this size, and have these pretrained windows where the config says any."""
    init_cfg = backbone.get('init_cfg')
    if init_cfg is None or init_cfg.checkpoint.startswith('work_dirs/'):
        return
    found = find(init_cfg.checkpoint)
    assert found, f'{init_cfg.checkpoint} is no release'
    release, _ = found
    assert backbone.arch == release.arch
    if backbone.get('pretrained_window_sizes') is not None:
        built = build_model(backbone, 'model.backbone')
        assert built.pretrained_window_sizes == tuple((w, w) for w in release.pretrained_window_sizes)


def check_groups(model, optimizer, layer_decay):
    """AdamW over everything, decay on matrices alone, and no block faster than the one behind it, or all alike."""
    assert type(optimizer) is torch.optim.AdamW
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for name, p in model.backbone.named_parameters():
        exempt = p.ndim < 2 or 'cpb_mlp' in name or 'logit_scale' in name
        assert (groups[id(p)]['weight_decay'] == 0) == exempt, f'{name} decays' if exempt else f'{name} does not decay'
    rates = [groups[id(block.mlp.fc1.weight)]['lr'] for stage in model.backbone.stages for block in stage.blocks]
    assert rates == sorted(rates) and min(rates) > 0
    assert (rates[0] < rates[-1]) == layer_decay
    assert max(rates) < 1e-3, 'that is a rate for SGD'


def check_schedule(cfg):
    """The rate ends below where it started: MMSegmentation's schedules for SGD end at 1e-4."""
    for scheduler in cfg.param_scheduler:
        assert scheduler.get('eta_min', 0.0) < cfg.optim_wrapper.optimizer.lr / 10, scheduler
