"""Mixed precision: the flag, what the processor can, the wrapper for the CPU, and boxes that stay in float32."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from support.tiny_fixtures import mmengine_runner
from support.tiny_training import write_config

from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.recipe import precision
from swinv2_mm.engine.recipe.precision import AmpOptimWrapper, set_precision
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.errors import UserError
from swinv2_mm.models.kernels import choose

pytestmark = pytest.mark.usefixtures('own_process')


def configured(wrapper, amp='auto'):
    cfg = Config({'optim_wrapper': wrapper, 'default_scope': 'mmdet'})
    set_precision(cfg, amp)
    return cfg


def pretend(monkeypatch, device, arithmetic=(torch.bfloat16, torch.float16)):
    """Have a machine of this kind, with arithmetic for these of the halves; a GPU emulates the others."""
    monkeypatch.setattr(precision, 'get_device', lambda: device)
    monkeypatch.setattr(precision, 'has_arithmetic', lambda dtype: dtype in (torch.float32, torch.float64, *arithmetic))
    monkeypatch.setattr(
        torch.cuda,
        'is_bf16_supported',
        lambda including_emulation=True: including_emulation or torch.bfloat16 in arithmetic,
    )
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'Tesla T4')


@pytest.fixture(params=['cuda', 'cpu'])
def device(request, monkeypatch):
    pretend(monkeypatch, request.param)
    return request.param


@pytest.fixture
def said(monkeypatch):
    """What the wrapper logs: pairs of level and text."""
    lines = []
    monkeypatch.setattr(precision, 'print_log', lambda line, logger, level=logging.INFO: lines.append((level, line)))
    return lines


def build_wrapper(dtype, **kwargs):
    """The wrapper of one parameter, as any runner would build it."""
    optimizer = torch.optim.AdamW([torch.ones(1, requires_grad=True)], lr=0.1)
    return AmpOptimWrapper(optimizer=optimizer, dtype=dtype, **kwargs)


# device, what it has arithmetic for, what 'auto' is there, and how the reason is told
MACHINES = [
    ('cpu', (torch.bfloat16,), torch.bfloat16, 'precision: bfloat16'),
    ('cpu', (), torch.float32, 'precision: float32, since this processor has no bfloat16 arithmetic'),
    ('cpu', (torch.float16,), torch.float32, 'precision: float32, since this processor has no bfloat16 arithmetic'),
    ('cuda', (torch.bfloat16,), torch.bfloat16, 'precision: bfloat16'),
    ('cuda', (), torch.float16, 'precision: float16, since Tesla T4 has no bfloat16 arithmetic'),
]


@pytest.mark.parametrize(
    ('name', 'dtype', 'scale'),
    [('auto', 'auto', 'dynamic'), ('bf16', 'bfloat16', 1.0), ('fp16', 'float16', 'dynamic')],
)
def test_the_flag_means_what_the_machine_can_or_what_it_says(name, dtype, scale, device):
    """Bug: MMDetection's flag means float16, and no loss scale keeps float16's gradients from vanishing."""
    cfg = configured({'type': 'OptimWrapper', 'clip_grad': {'max_norm': 1.0}}, name)
    assert cfg.optim_wrapper.type == 'swinv2_mm.AmpOptimWrapper'
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.clip_grad.max_norm) == (dtype, 1.0)
    assert cfg.optim_wrapper.loss_scale == scale


@pytest.mark.parametrize(('kind', 'arithmetic', 'chosen', 'line'), MACHINES)
@pytest.mark.parametrize('dtype', ['auto', None])
def test_auto_is_a_type_that_the_machine_computes_in(kind, arithmetic, chosen, line, dtype, monkeypatch, said):
    """Resolved by the wrapper itself, in any runner, and told in one line.

    Bug: bfloat16 everywhere, which a CPU without it emulates in 15 to 70 times the time; or a GPU, unasked.
    """
    pretend(monkeypatch, kind, arithmetic)
    wrapper = build_wrapper(dtype)
    assert wrapper.cast_dtype == chosen and said == [(logging.INFO, line)]
    assert wrapper.loss_scaler._enabled == (chosen == torch.float16 and torch.cuda.is_available())
    monkeypatch.setattr(precision, 'get_device', lambda: 'cpu')
    with wrapper.optim_context(torch.nn.Identity()):
        assert torch.nn.functional.linear(torch.ones(1, 1), torch.ones(1, 1)).dtype == chosen


@pytest.mark.parametrize(('kind', 'arithmetic', 'chosen', 'line'), MACHINES)
def test_the_config_says_what_was_asked_for(kind, arithmetic, chosen, line, monkeypatch):
    """Bug: a run's config, dumped on one machine, brings that machine's type to another one."""
    pretend(monkeypatch, kind, arithmetic)
    asked = {'type': 'swinv2_mm.AmpOptimWrapper', 'dtype': 'auto'}
    for wrapper, name in ((asked, None), (asked, 'auto'), ({'type': 'AmpOptimWrapper', 'dtype': 'auto'}, None)):
        assert configured(dict(wrapper), name).optim_wrapper.to_dict() == asked
    assert configured({'type': 'OptimWrapper'}).optim_wrapper.to_dict() == asked | {'loss_scale': 'dynamic'}


@pytest.mark.parametrize(
    ('kind', 'dtype', 'name'),
    [
        ('cpu', 'bfloat16', 'this processor'),
        ('cpu', 'float16', 'this processor'),
        ('cuda', 'bfloat16', 'Tesla T4'),
    ],
)
def test_an_emulated_type_is_obeyed_with_a_warning(kind, dtype, name, monkeypatch, said):
    """Bug: the type is refused or replaced; or nine hours instead of minutes, without a word of why."""
    pretend(monkeypatch, kind, ())
    for flag, wrapper in ((dtype, {'type': 'OptimWrapper'}), (None, {'type': 'AmpOptimWrapper', 'dtype': dtype})):
        assert configured(wrapper, flag).optim_wrapper.type == 'swinv2_mm.AmpOptimWrapper'
    assert build_wrapper(dtype).cast_dtype == getattr(torch, dtype)
    ((level, line),) = said
    assert level == logging.WARNING
    for part in (f'precision: {dtype} as asked for', name, 'slow', '--amp auto', "dtype='auto'"):
        assert part in line
    # The remedy is one.
    assert configured({'type': 'AmpOptimWrapper', 'dtype': dtype}, 'auto').optim_wrapper.get('dtype') != dtype


def test_a_type_that_the_machine_has_is_no_matter_of_warning(device, said):
    """Bug: a warning that everybody sees is one that nobody reads."""
    for dtype in ('bfloat16', torch.float16):
        build_wrapper(dtype)
    assert said == []


def test_the_processor_is_asked(tmp_path):
    """oneDNN's own switches make any machine one with AVX2 alone, in a process of its own.

    Bug: a list of processors of our own, or an answer that torch's operations do not keep to.
    """
    code = (
        'import torch\nfrom swinv2_mm.models.kernels.choose import has_arithmetic as has\n'
        'print(*(has(getattr(torch, name)) for name in ("float32", "float64", "bfloat16", "float16", "int8")))'
    )
    environment = dict(os.environ, ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2')
    out = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ['True', 'True', 'False', 'False', 'False']


@pytest.mark.parametrize(
    ('onednn', 'widens', 'wanted'), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_bfloat16_in_float32_registers_is_no_arithmetic(onednn, widens, wanted, monkeypatch):
    """Bug: AVX-512 without AVX512_BF16 or a torch without oneDNN counts, where bfloat16 is the slowest type."""
    monkeypatch.setattr(choose, '_widens_bfloat16', lambda: widens)
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: onednn)
    assert choose.has_arithmetic.__wrapped__(torch.bfloat16) == wanted
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert not choose.has_arithmetic.__wrapped__(torch.bfloat16)
    assert choose.has_arithmetic.__wrapped__(torch.float32)


@pytest.mark.parametrize('name', ['maskrcnn_swinv2_t_shapes', 'upernet_swinv2_t_shapes'])
def test_the_shapes_are_trained_in_what_the_machine_can(name):
    """Bug: nine hours for the first command of the README."""
    cfg = load_config(str(Path(__file__).parents[3] / f'configs/{name}.py'), None)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ('swinv2_mm.AmpOptimWrapper', 'auto')


def test_a_run_goes_on_on_another_kind_of_processor(tmp_path, monkeypatch):
    """One form of checkpoint: bfloat16 there, float32 here, and the other way round; with our tools or mmengine's.

    Bug: a loss scale, or its lack, that the other wrapper refuses.
    """
    path = write_config(tmp_path, extra="optim_wrapper.update(type='swinv2_mm.AmpOptimWrapper', dtype='auto')\n")
    monkeypatch.setattr(precision, 'has_arithmetic', lambda dtype: True)
    there = train(prepare_training(path, work_dir='there'))
    assert there.optim_wrapper.cast_dtype == torch.bfloat16
    monkeypatch.setattr(precision, 'has_arithmetic', lambda dtype: dtype == torch.float32)
    here = train(prepare_training(path, work_dir='here', resume='there/epoch_1.pth'))
    mine = mmengine_runner(path, 'mine', load_from='there/epoch_1.pth', resume=True)
    mine.train()
    for runner in (here, mine):
        assert runner.optim_wrapper.cast_dtype == torch.float32 and runner.iter == there.iter
    saved = [read_checkpoint(f'{folder}/epoch_3.pth')['optimizer'] for folder in ('there', 'here', 'mine')]
    assert all(other.keys() == saved[0].keys() for other in saved) and 'loss_scaler' not in saved[0]
    # In float32 it computes what float32 computes, and the loss scale of a GPU is dropped.
    monkeypatch.setattr(precision, 'has_arithmetic', lambda dtype: True)
    train(prepare_training(path, amp='fp16', work_dir='gpu'))
    assert 'loss_scaler' in read_checkpoint('gpu/epoch_1.pth')['optimizer']
    monkeypatch.setattr(precision, 'has_arithmetic', lambda dtype: dtype == torch.float32)
    finished = [
        train(prepare_training(path, amp=name, work_dir=name, resume='gpu/epoch_1.pth')) for name in ('auto', 'fp32')
    ]
    for auto, exact in zip(*(runner.model.parameters() for runner in finished), strict=True):
        assert torch.equal(auto, exact)
    assert Config.fromfile('auto/tiny.py').optim_wrapper.dtype == 'auto'


def test_without_the_flag_nothing_changes(device):
    assert configured({'type': 'OptimWrapper'}, None).to_dict() == {
        'optim_wrapper': {'type': 'OptimWrapper'},
        'default_scope': 'mmdet',
    }


@pytest.mark.parametrize('name', [None, 'auto', 'float16'])
def test_the_config_may_choose_itself(name, device):
    """Bug: the flag overrides the type, or the loss scale, that a config was tuned for."""
    wrapper = {'type': 'AmpOptimWrapper', 'dtype': 'float16', 'loss_scale': 512.0}
    assert configured(dict(wrapper), name).optim_wrapper.to_dict() == wrapper | {'type': 'swinv2_mm.AmpOptimWrapper'}


def test_a_named_type_replaces_the_config_s(device):
    """Bug: ``--amp fp16`` beside a config in bfloat16 trains in bfloat16, or with the loss scale of bfloat16."""
    wrapper = {'type': 'swinv2_mm.AmpOptimWrapper', 'dtype': 'bfloat16', 'loss_scale': 1.0, 'accumulative_counts': 2}
    changed = configured(dict(wrapper), 'fp16').optim_wrapper
    assert (changed.dtype, changed.loss_scale, changed.accumulative_counts) == ('float16', 'dynamic', 2)
    cfg = configured(dict(wrapper), 'fp32')
    assert cfg.optim_wrapper.to_dict() == {'type': 'OptimWrapper', 'accumulative_counts': 2}
    assert 'custom_hooks' not in cfg


def test_refuses_what_it_cannot_turn(monkeypatch):
    with pytest.raises(UserError, match='ApexOptimWrapper'):
        configured({'type': 'ApexOptimWrapper'})
    monkeypatch.setattr(precision, 'get_device', lambda: 'cpu')
    with pytest.raises(UserError, match='--amp fp32'):
        configured({'type': 'AmpOptimWrapper', 'dtype': 'float64'}, None)
    for wrong in ({'dtype': 'float32'}, {'dtype': 'float16', 'loss_scale': 'large'}):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        with pytest.raises(ValueError, match=r'set (it to|dtype=)'):
            precision.AmpOptimWrapper(optimizer=optimizer, **wrong)


@pytest.mark.parametrize('name', ['bf16', 'fp16'])
def test_trains_in_half_precision_on_this_machine(name, tmp_path):
    """Bug: mmengine refuses to build its wrapper without an accelerator; or builds it, and computes in float32."""
    settings = {'noise': False, 'train_cfg': 'dict(by_epoch=True, max_epochs=1)'}
    half = train(prepare_training(write_config(tmp_path, 'half.py', **settings), amp=name))
    full = train(prepare_training(write_config(tmp_path, 'full.py', **settings)))
    dtype = getattr(torch, precision.PRECISIONS[name])
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
    scale = 'optim_wrapper.update(loss_scale=dict(init_scale=2.0**40, growth_interval=10**6))\n'
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

    precision.Float32BoxesHook().before_train(Runner())
    features = torch.randn(1, 4, 600, 8)
    rois = torch.tensor([[0.0, 1.0, 501.0, 5.0, 507.0]])
    with torch.autocast('cpu', dtype):
        scores, deltas = head([features])
        pooled = extractor((features.to(dtype),), rois)
    assert scores[0].dtype == deltas[0].dtype == pooled.dtype == torch.float32
    assert torch.equal(pooled, extractor((features.to(dtype).float(),), rois))
