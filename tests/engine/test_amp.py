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


def precision(wrapper, flag=True):
    cfg = Config({'optim_wrapper': wrapper, 'default_scope': 'mmdet'})
    set_precision(cfg, flag)
    return cfg


@pytest.fixture(params=['cuda', 'cpu'])
def device(request, monkeypatch):
    monkeypatch.setattr(amp, 'get_device', lambda: request.param)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    return request.param


def test_the_flag_means_bfloat16(device):
    """Bug: MMDetection's flag means float16, in which an all-zero token divides by zero."""
    cfg = precision({'type': 'OptimWrapper', 'clip_grad': {'max_norm': 1.0}})
    assert cfg.optim_wrapper.type == {'cuda': 'AmpOptimWrapper', 'cpu': 'swinv2_mm.AmpOptimWrapper'}[device]
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.clip_grad.max_norm) == ('bfloat16', 1.0)
    assert [hook.type for hook in cfg.custom_hooks] == ['swinv2_mm.Float32BoxesHook']


def test_without_the_flag_nothing_changes(device):
    assert precision({'type': 'OptimWrapper'}, flag=False).to_dict() == {
        'optim_wrapper': {'type': 'OptimWrapper'},
        'default_scope': 'mmdet',
    }


@pytest.mark.parametrize('flag', [False, True])
def test_the_config_may_choose_itself(flag, device):
    """Bug: the flag overrides the type that a config was tuned for; or a CPU is asked for one that it lacks."""
    wrapper = {'type': 'AmpOptimWrapper', 'dtype': 'float16', 'loss_scale': 'dynamic'}
    if device == 'cpu':
        with pytest.raises(UserError, match=r'optim_wrapper\.dtype=bfloat16'):
            precision(wrapper, flag)
    else:
        assert precision(wrapper, flag).optim_wrapper.to_dict() == wrapper


def test_refuses_what_it_cannot_turn():
    with pytest.raises(UserError, match='DeepSpeedOptimWrapper'):
        precision({'type': 'DeepSpeedOptimWrapper'})


def test_trains_in_bfloat16_on_this_machine(tmp_path):
    """Bug: mmengine refuses to build its wrapper without an accelerator; or builds it, and computes in float32."""
    settings = {'noise': False, 'train_cfg': 'dict(by_epoch=True, max_epochs=1)'}
    half = train(prepare_training(write_config(tmp_path, 'half.py', **settings), amp=True))
    full = train(prepare_training(write_config(tmp_path, 'full.py', **settings)))
    with half.optim_wrapper.optim_context(half.model):
        assert torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == torch.bfloat16
    weights, exact = half.model.state_dict(), full.model.state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    difference = max((weights[key] - exact[key]).abs().max() for key in exact)
    assert 0 < difference < 0.05  # the steps of AdamW at lr 1e-2


def test_boxes_are_computed_in_float32():
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
    with torch.autocast('cpu', torch.bfloat16):
        scores, deltas = head([features])
        pooled = extractor((features.bfloat16(),), rois)
    assert scores[0].dtype == deltas[0].dtype == pooled.dtype == torch.float32
    assert torch.equal(pooled, extractor((features.bfloat16().float(),), rois))
