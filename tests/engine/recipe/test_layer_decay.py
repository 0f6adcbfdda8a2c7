"""Layer-wise learning-rate decay: which rate and which weight decay each parameter really gets."""

import re
from functools import cache

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from support.tiny_fixtures import ROOT
from support.tiny_training import write_config
from torch import nn

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2

SCHEDULE = Config.fromfile(ROOT / 'configs' / '_base_' / 'schedules' / 'adamw.py').optim_wrapper
CONSTRUCTOR = 'swinv2_mm.LayerDecayOptimWrapperConstructor'
UNDECAYED = re.compile(r'bias$|(norm\d?|bn)\.weight$|cpb_mlp|logit_scale')
PART = re.compile(r'backbone\.(patch_embed|stages\.\d+\.downsample|stages\.\d+\.blocks\.\d+|norm\d)\.')


def layers_above(third):
    """How many layers are above each part: get_swin_layer of Microsoft's optimizer.py, for depths 2, 2, ``third``, 2.

    There the downsampling stands at the end of a stage, here at the start of the next one.
    """
    return {
        'patch_embed': third + 7,
        'stages.0.blocks.0': third + 6,
        'stages.0.blocks.1': third + 5,
        'stages.1.downsample': third + 5,
        'stages.1.blocks.0': third + 4,
        'stages.1.blocks.1': third + 3,
        'stages.2.downsample': third + 3,
        **{f'stages.2.blocks.{i}': third + 2 - i for i in range(third)},
        'stages.3.downsample': 3,
        'stages.3.blocks.0': 2,
        'stages.3.blocks.1': 1,
        **dict.fromkeys(('norm0', 'norm1', 'norm2', 'norm3'), 0),
    }


ABOVE = {'tiny': layers_above(6), 'large': layers_above(18)}


@cache
def whole(leaf, arch):
    """A model of a config in full size, without memory."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{leaf}.py')
    init_default_scope(cfg.default_scope)
    width = {'tiny': 96, 'large': 192}[arch]
    widths = [width, 2 * width, 4 * width, 8 * width]
    cfg.model.backbone.update(arch=arch, init_cfg=None)
    if cfg.default_scope == 'mmdet':
        cfg.model.neck.in_channels = widths
    else:
        cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = widths, widths[2]
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def groups_of(model, constructor=CONSTRUCTOR, optimizer=SCHEDULE.optimizer, **paramwise):
    cfg = dict(type='OptimWrapper', optimizer=dict(optimizer), constructor=constructor, paramwise_cfg=paramwise)
    return build_optim_wrapper(model, cfg).optimizer.param_groups


def found(model, **arguments):
    """{name: (learning rate, weight decay)} of each parameter that is optimized."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = groups_of(model, **arguments)
    members = [names[parameter] for group in groups for parameter in group['params']]
    assert len(members) == len(set(members))
    return {names[p]: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}


def approximately(expected):
    return {name: pytest.approx(pair, rel=1e-9) for name, pair in expected.items()}


@pytest.mark.parametrize('rate', [0.9, 0.95])
@pytest.mark.parametrize('arch', ['tiny', 'large'])
@pytest.mark.parametrize('leaf', ['maskrcnn_swinv2_t', 'upernet_swinv2_t'])
def test_every_parameter_has_the_rate_of_its_layer(leaf, arch, rate):
    """Rate and weight decay are those worked out by hand, with the keys of our schedules and without them.

    Prevents: a block, an output norm or a downsampling in another layer, heads that are slowed down, and weight decay
    of norms, biases, logit scales or the position bias.
    """
    model = whole(leaf, arch)
    expected = {}
    for name, _ in model.named_parameters():
        part = PART.match(name)
        above = ABOVE[arch][part[1]] if part else 0
        expected[name] = 1e-4 * rate**above, 0.0 if UNDECAYED.search(name) else 0.05
    assert found(model, decay_rate=rate, **SCHEDULE.paramwise_cfg) == approximately(expected)
    assert found(model, decay_rate=rate) == approximately(expected)


@pytest.mark.parametrize('arch', ['tiny', 'small', 'base', 'large', 'huge', 'giant'])
def test_every_size_decays_block_by_block(arch):
    """Each block is slower than the next one by the rate, with all that is in it, in a few groups.

    Prevents: extra norms (huge, giant) that count as output norms, a number of layers of another size, and a group for
    each parameter, whose updates cost more than the gradients.
    """
    with torch.device('meta'):
        backbone = SwinTransformerV2(arch)
    pairs = found(backbone, decay_rate=0.9)
    blocks = [f'stages.{i}.blocks.{j}.' for i, stage in enumerate(backbone.stages) for j in range(len(stage.blocks))]
    for above, block in enumerate(reversed(blocks), 1):
        rates = [lr for name, (lr, _) in pairs.items() if name.startswith(block)]
        assert len(rates) >= 15 and rates == pytest.approx([1e-4 * 0.9**above] * len(rates), rel=1e-9)
    assert any('norm3.weight' in name and 'blocks' in name for name in pairs) == (arch in ('huge', 'giant'))
    names = [group['group_name'] for group in groups_of(backbone, decay_rate=0.9, **SCHEDULE.paramwise_cfg)]
    assert sorted(names) == sorted(
        [f'layer_{i}_{kind}' for i in range(len(blocks) + 1) for kind in ('decay', 'no_decay')]
        + [f'layer_{len(blocks) + 1}_no_decay']
    )  # above the blocks there are the output norms alone


def test_lr_mult_and_decay_mult_multiply_the_rate_of_the_layer():
    """``lr_mult`` and ``decay_mult`` of a parameter come on top of its layer.

    Prevents: a slower backbone that loses its layers, the reverse, and a key `backbone` that hides shorter ones, by
    which mmengine gives weight decay to the position bias, the logit scales, norms and biases.
    """
    model = whole('maskrcnn_swinv2_t', 'tiny')
    keys = {'backbone': dict(lr_mult=0.1), 'attn.proj.weight': dict(lr_mult=3.0, decay_mult=2.0)}
    expected = {}
    for name, _ in model.named_parameters():
        part = PART.match(name)
        lr = 1e-4 * 0.9 ** (ABOVE['tiny'][part[1]] if part else 0)
        lr *= 3.0 if 'attn.proj.weight' in name else 0.1 if name.startswith('backbone') else 1.0
        if not part and name.endswith('bias'):
            lr *= 2.0
        decay = 0.0 if UNDECAYED.search(name) else 0.1 if 'attn.proj.weight' in name else 0.05
        expected[name] = lr, decay
    assert found(model, decay_rate=0.9, custom_keys=keys, bias_lr_mult=2.0) == approximately(expected)


def test_other_settings_of_a_parameter_are_kept():
    """A key's own options, and the optimizer's defaults where the config sets none.

    Prevents: parameters merged into a group that has other options, and torch's weight decay of 0.01 on norms.
    """
    model = whole('maskrcnn_swinv2_t', 'tiny')
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = groups_of(
        model,
        optimizer=dict(type='AdamW', lr=1.0),
        decay_rate=0.9,
        custom_keys={'mlp.fc1.weight': dict(betas=[0.5, 0.6])},
    )
    for group in groups:
        for parameter in group['params']:
            name = names[parameter]
            assert list(group['betas']) == ([0.5, 0.6] if 'mlp.fc1.weight' in name else [0.9, 0.999])
            assert group['weight_decay'] == (0.0 if UNDECAYED.search(name) else 0.01)


def test_a_rate_of_one_equals_mmengines_constructor():
    """A rate of 1 gives each parameter what mmengine's own constructor gives it. Prevents: an offset of a layer."""
    model = whole('upernet_swinv2_t', 'tiny')
    plain = found(model, constructor='DefaultOptimWrapperConstructor', **SCHEDULE.paramwise_cfg)
    assert found(model, decay_rate=1, **SCHEDULE.paramwise_cfg) == plain


def test_frozen_stages_do_not_shift_the_layers():
    """Frozen parameters are left out, the others keep their layers. Prevents: layers counted from what is trained."""
    backbone = SwinTransformerV2(embed_dims=8, depths=(1, 2), num_heads=(1, 1), out_indices=(1,), frozen_stages=1)
    pairs = found(backbone, decay_rate=0.5)
    assert (
        set(pairs)
        == {name for name, p in backbone.named_parameters() if p.requires_grad}
        != set(dict(backbone.named_parameters()))
    )
    rates = {name: lr for name, (lr, _) in pairs.items()}
    assert rates['stages.1.downsample.norm.weight'] == 1e-4 / 8
    assert rates['stages.1.blocks.0.norm1.weight'] == 1e-4 / 4
    assert rates['stages.1.blocks.1.norm1.weight'] == 1e-4 / 2
    assert rates['norm1.weight'] == 1e-4


def test_shared_parameters_are_trained_once():
    """Whatever ``bypass_duplicate`` says. Prevents: a parameter that each step updates twice."""
    model = nn.Module()
    model.backbone = SwinTransformerV2(embed_dims=8, depths=(1,), num_heads=(1,), out_indices=(0,))
    model.head = nn.Linear(4, 4)
    model.other_head = model.head
    model.third_head = nn.Sequential(model.head)
    for settings in ({}, {'bypass_duplicate': True}, {'bypass_duplicate': False}):
        assert set(found(model, decay_rate=0.9, **settings)) == {name for name, _ in model.named_parameters()}


def test_schedule_and_batch_size_scale_every_layer(own_process, tmp_path):
    """``--auto-scale-lr`` and the schedulers keep the ratios, and the log shows the rate of the heads.

    Prevents: groups that one of them overlooks or sets to one rate, and curves of the patch embedding's rate.
    """
    extra = f"""
optim_wrapper.update(constructor='{CONSTRUCTOR}', paramwise_cfg=dict(decay_rate=0.5))
train_cfg.update(max_epochs=1, val_interval=2)
default_hooks['checkpoint'] = None
"""
    cfg = prepare_training(write_config(tmp_path, extra=extra), work_dir='run', auto_scale_lr=True)
    runner = train(cfg)  # 4 iterations of 2 images; the rate is for 16
    groups = runner.optim_wrapper.optimizer.param_groups
    base = 1e-2 * 2 / 16
    initial = {group['group_name']: group['initial_lr'] for group in groups}
    assert initial == pytest.approx(
        {f'layer_{layer}_{kind}': base * 0.5 ** (4 - layer) for layer in range(5) for kind in ('decay', 'no_decay')}
    )
    done = {round(group['lr'] / group['initial_lr'], 9) for group in groups}
    assert len(done) == 1 and 0.1 < done.pop() < 1.0
    assert runner.message_hub.get_scalar('train/lr').data[0][0] == pytest.approx(0.1 * base)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(), 'decay_rate=None must be a number'),
        (dict(decay_rate=0), 'decay_rate=0 must be'),
        (dict(decay_rate=1.5), 'at most 1'),
        (dict(decay_rate='0.9'), "decay_rate='0.9' must be"),
        (dict(decay_rate=True), 'decay_rate=True must be'),
        (dict(decay_rate=0.9, num_layers=12), 'num_layers: leave it out'),
        (dict(decay_rate=0.9, decay_type='stage_wise'), 'decay_type: leave it out'),
    ],
)
def test_a_wrong_rate_or_setting_is_refused_before_the_run(own_process, tmp_path, settings, message):
    """Told before anything is written, and by the constructor alone. Prevents: a rate that grows, or a setting of
    MMDetection's constructor that means nothing here.
    """
    extra = f"optim_wrapper.update(constructor='{CONSTRUCTOR}', paramwise_cfg={settings})\n"
    path = write_config(tmp_path, extra=extra)
    with pytest.raises(UserError, match=message):
        prepare_training(path, work_dir='run')
    assert not (tmp_path / 'run').exists()
    with pytest.raises(UserError, match=message):
        groups_of(nn.Linear(1, 1), **settings)


def test_a_rate_without_its_constructor_is_refused(own_process, tmp_path):
    """Prevents: a training without the decay that its config seems to have."""
    path = write_config(tmp_path, extra='optim_wrapper.update(paramwise_cfg=dict(decay_rate=0.9))\n')
    with pytest.raises(UserError, match=f"set optim_wrapper.constructor='{CONSTRUCTOR}'"):
        prepare_training(path, work_dir='run')


def test_a_model_without_swinv2_or_rate_is_refused():
    """Prevents: a model with another backbone that trains at one rate, and a TypeError where there is no rate."""
    with pytest.raises(UserError, match=r'no swinv2_mm\.SwinTransformerV2'):
        groups_of(nn.Linear(1, 1), decay_rate=0.9)
    with pytest.raises(UserError, match=r'optimizer\.lr is not set'):
        groups_of(nn.Linear(1, 1), optimizer=dict(type='AdamW'), decay_rate=0.9)
