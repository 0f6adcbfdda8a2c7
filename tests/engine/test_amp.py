"""Mixed precision: the flag, the wrapper for the CPU, and boxes that stay in float32."""

import pytest
import torch
from mmengine.config import Config
from tiny_training import write_config

from swinv2_mm.engine import amp
from swinv2_mm.engine.amp import set_precision
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')


def precision(wrapper, amp='auto'):
    cfg = Config({'optim_wrapper': wrapper, 'default_scope': 'mmdet'})
    set_precision(cfg, amp)
    return cfg


@pytest.fixture(params=['cuda', 'cpu'])
def device(request, monkeypatch):
    monkeypatch.setattr(amp, 'get_device', lambda: request.param)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    return request.param


WRAPPER = {'cuda': 'AmpOptimWrapper', 'cpu': 'swinv2_mm.AmpOptimWrapper'}


@pytest.mark.parametrize(
    ('name', 'dtype', 'scale'),
    [('auto', 'bfloat16', 1.0), ('bf16', 'bfloat16', 1.0), ('fp16', 'float16', 'dynamic')],
)
def test_the_flag_means_bfloat16_or_what_it_says(name, dtype, scale, device):
    """Bug: MMDetection's flag means float16, and no loss scale keeps float16's gradients from vanishing."""
    cfg = precision({'type': 'OptimWrapper', 'clip_grad': {'max_norm': 1.0}}, name)
    assert cfg.optim_wrapper.type == WRAPPER[device]
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.clip_grad.max_norm) == (dtype, 1.0)
    assert cfg.optim_wrapper.loss_scale == scale
    assert [hook.type for hook in cfg.custom_hooks] == ['swinv2_mm.Float32BoxesHook']


def test_without_the_flag_nothing_changes(device):
    assert precision({'type': 'OptimWrapper'}, None).to_dict() == {
        'optim_wrapper': {'type': 'OptimWrapper'},
        'default_scope': 'mmdet',
    }


@pytest.mark.parametrize('name', [None, 'auto', 'float16'])
def test_the_config_may_choose_itself(name, device):
    """Bug: the flag overrides the type, or the loss scale, that a config was tuned for."""
    wrapper = {'type': 'AmpOptimWrapper', 'dtype': 'float16', 'loss_scale': 512.0}
    assert precision(dict(wrapper), name).optim_wrapper.to_dict() == wrapper | {'type': WRAPPER[device]}


def test_a_named_type_replaces_the_config_s(device):
    """Bug: ``--amp fp16`` beside a config in bfloat16 trains in bfloat16, or with the loss scale of bfloat16."""
    wrapper = {'type': 'swinv2_mm.AmpOptimWrapper', 'dtype': 'bfloat16', 'loss_scale': 1.0, 'accumulative_counts': 2}
    changed = precision(dict(wrapper), 'fp16').optim_wrapper
    assert (changed.dtype, changed.loss_scale, changed.accumulative_counts) == ('float16', 'dynamic', 2)
    cfg = precision(dict(wrapper), 'fp32')
    assert cfg.optim_wrapper.to_dict() == {'type': 'OptimWrapper', 'accumulative_counts': 2}
    assert 'custom_hooks' not in cfg


def test_refuses_what_it_cannot_turn(monkeypatch):
    with pytest.raises(UserError, match='DeepSpeedOptimWrapper'):
        precision({'type': 'DeepSpeedOptimWrapper'})
    monkeypatch.setattr(amp, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match='--amp fp32'):
        precision({'type': 'AmpOptimWrapper', 'dtype': 'float64'}, None)
    for wrong in ({'dtype': 'float32'}, {'dtype': 'float16', 'loss_scale': 'large'}):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        with pytest.raises(ValueError, match=r'set (it to|dtype=)'):
            amp.AmpOptimWrapper(optimizer=optimizer, **wrong)


@pytest.mark.parametrize('name', ['bf16', 'fp16'])
def test_trains_in_half_precision_on_this_machine(name, tmp_path):
    """Bug: mmengine refuses to build its wrapper without an accelerator; or builds it, and computes in float32."""
    settings = {'noise': False, 'train_cfg': 'dict(by_epoch=True, max_epochs=1)'}
    half = train(prepare_training(write_config(tmp_path, 'half.py', **settings), amp=name))
    full = train(prepare_training(write_config(tmp_path, 'full.py', **settings)))
    dtype = getattr(torch, amp.PRECISIONS[name])
    with half.optim_wrapper.optim_context(half.model):
        assert torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == dtype
    assert half.optim_wrapper.loss_scaler.is_enabled() == (name == 'fp16')
    weights, exact = half.model.state_dict(), full.model.state_dict()
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float32}
    difference = max((weights[key] - exact[key]).abs().max() for key in exact)
    assert 0 < difference < 0.05  # the steps of AdamW at lr 1e-2


def test_the_loss_scale_finds_its_size_and_is_resumed(tmp_path):
    """Bug: gradients that overflow reach the weights; or a resumed run starts again at the first scale.

    From 2 ** 40 on, float16 gradients overflow; each step that does so is left out and halves the scale.
    """
    scale = "optim_wrapper.update(loss_scale=dict(init_scale=2.0**40, growth_interval=10**6))\n"
    path = write_config(tmp_path, 'half.py', scale, noise=False)
    straight = train(prepare_training(path, amp='fp16', work_dir='straight'))
    found = straight.optim_wrapper.loss_scaler.get_scale()
    assert 1 < found < 2.0**40
    assert all(p.isfinite().all() for p in straight.model.parameters())
    resumed = train(prepare_training(path, amp='fp16', work_dir='resumed', resume='straight/epoch_1.pth'))
    assert resumed.optim_wrapper.loss_scaler.get_scale() == found
    for mine, expected in zip(resumed.model.parameters(), straight.model.parameters(), strict=True):
        assert torch.equal(mine, expected)
    # Another precision goes on from the same checkpoint.
    train(prepare_training(path, amp='fp32', work_dir='other', resume='straight/epoch_1.pth'))
    train(prepare_training(path, amp='bf16', work_dir='another', resume='straight/epoch_1.pth'))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_boxes_are_computed_in_float32(dtype):
    """Bug: RoIs and anchors in bfloat16 are rounded to every fourth pixel around 1000, and mmcv lacks the type."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=False)
    head = MODELS.build(
        {
            'type': 'RPNHead',
            'in_channels': 4,
            'feat_channels': 4,
            'anchor_generator': {'type': 'AnchorGenerator', 'scales': [8], 'ratios': [1.0], 'strides': [4]},
            '_scope_': 'mmdet',
        }
    )
    extractor = MODELS.build(
        {
            'type': 'SingleRoIExtractor',
            'roi_layer': {'type': 'RoIAlign', 'output_size': 2, 'sampling_ratio': 1},
            'out_channels': 4,
            'featmap_strides': [1],
            '_scope_': 'mmdet',
        }
    )

    class Runner:
        model = torch.nn.ModuleList([head, extractor])

    amp.Float32BoxesHook().before_train(Runner())
    features = torch.randn(1, 4, 600, 8)
    rois = torch.tensor([[0.0, 1.0, 501.0, 5.0, 507.0]])
    with torch.autocast('cpu', dtype):
        scores, deltas = head([features])
        pooled = extractor((features.to(dtype),), rois)
    assert scores[0].dtype == deltas[0].dtype == pooled.dtype == torch.float32
    assert torch.equal(pooled, extractor((features.to(dtype).float(),), rois))
