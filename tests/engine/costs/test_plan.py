"""The planner's bytes are those of models and optimizers that are really built, and of steps that are really taken."""

import resource
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from support import ROOT, load_script
from support.zoo import load

from swinv2_mm.engine.costs import plan as planning
from swinv2_mm.engine.costs.plan import GIB, Setting, options, plan, work_of
from swinv2_mm.engine.costs.plan.answers import Answers
from swinv2_mm.engine.costs.plan.sharding import held, shares
from swinv2_mm.engine.costs.plan.sizes import with_arch
from swinv2_mm.engine.costs.plan.step import Work, trace
from swinv2_mm.engine.costs.plan.traffic import traffic
from swinv2_mm.errors import UserError

CONFIGS = ROOT / 'configs'
NARROW = dict(embed_dims=16, depths=(2, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4, init_cfg=None)
SMALL = Work((64, 96), 2, 4)


def narrow(name, **backbone):
    """A config of the zoo with a narrow backbone, whose heads take its maps."""
    cfg = load(CONFIGS / f'{name}.py')
    cfg.model.backbone.update(NARROW | backbone)
    widths, old = [16, 32, 64, 128], [96, 192, 384, 768]
    for part in (cfg.model.get('neck'), cfg.model.get('decode_head'), cfg.model.get('auxiliary_head')):
        if part and isinstance(part.get('in_channels'), int):
            part.in_channels = widths[old.index(part.in_channels)]
        elif part:
            part.in_channels = [widths[old.index(width)] for width in part.in_channels]
    return cfg


@pytest.fixture(scope='module')
def simmim():
    return narrow('simmim_swinv2_t_shapes')


@pytest.fixture(scope='module')
def step(simmim):
    return trace(simmim, SMALL)


def test_parameters_and_state_are_those_of_a_built_optimizer(simmim, step):
    """After a real step. Bug: a plan without the state of some parameters, or with scalars of each as megabytes."""
    cfg = deepcopy(simmim)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        wrapper = build_optim_wrapper(model, dict(optimizer=cfg.optim_wrapper.optimizer))
    model(torch.rand(1, 3, 64, 96), mode='loss')['loss'].backward()
    wrapper.optimizer.step()
    state = wrapper.optimizer.state
    real = {
        name: (p.nbytes, sum(value.nbytes for value in state[p].values() if value.ndim))
        for name, p in model.named_parameters()
    }
    assert {w.name: (w.bytes, w.state) for w in step.weights} == real


def test_zero1_divides_the_state_and_nothing_else(step):
    """Bug: a share that is not there, or parameters that are divided, too."""
    state = sum(w.state for w in step.weights)
    for processes in (1, 2, 3, 8):
        found = shares(step.weights, processes)
        assert len(found) == processes and sum(found) == state
    plain, zero = held(step, 'ddp', 4), held(step, 'zero1', 4)
    assert state / 4 <= zero.optimizer < state and plain.optimizer == state
    assert (zero.parameters, zero.communication) == (plain.parameters, plain.communication)
    assert held(step, 'zero1', 1) == held(step, 'fsdp2', 1) == held(step, 'ddp', 1)


def test_shares_are_those_that_were_measured():
    """docs/distributed.md has the bytes of two processes that trained a backbone of size T. Bug: another division than
    that of torch."""
    cfg = load(CONFIGS / 'simmim_swinv2_t_192.py')
    found = [w for w in trace(cfg, Work((32, 32), 1)).weights if w.name.startswith('backbone.')]
    assert f'{max(shares(found, 2)) / 1e6:.1f}' == '114.1'
    assert f'{sum(w.bytes for w in found) / 1e6:.1f}' == '110.3'


def test_fsdp2_divides_all_three(step):
    """Bug: parameters, gradients or state of a whole model in each process."""
    parameters = sum(w.bytes for w in step.weights)
    for processes in (2, 4):
        found = held(step, 'fsdp2', processes)
        assert parameters / processes <= found.parameters - step.buffers < 1.3 * parameters / processes
        assert 2 * parameters / processes <= found.optimizer < 2.6 * parameters / processes
    assert held(step, 'fsdp2', 4, copies=1).parameters > held(step, 'fsdp2', 4).parameters


def test_fsdp2_sends_the_gradients_of_a_block_away(step):
    """At the end of the backward pass those of all blocks. Bug: a block that never finishes, as two of its gradients
    share a storage, so that each process is planned with the gradients of the whole model."""
    last = max(step.fullest, key=lambda moment: (moment.gradients, moment.finished))
    blocks = sum(w.bytes for w in step.weights if w.unit is not None)
    assert blocks <= last.finished < 1.1 * blocks
    assert last.gradients >= sum(w.bytes for w in step.weights)


@pytest.mark.parametrize('device', ['cuda', 'cpu'])
@pytest.mark.parametrize('half', [False, True])
def test_recomputing_never_needs_more(simmim, device, half):
    """Bug: a plan that follows another order of forward and backward passes than torch does."""
    work = Work((128, 128), 2, device=device, dtype=torch.bfloat16 if half else None)
    cfg = deepcopy(simmim)
    cfg.model.backbone.depths = (2, 2, 4, 2)
    plain = trace(cfg, work)
    cfg.model.backbone.with_cp = True
    assert trace(cfg, work).peak < plain.peak


def test_torch_counts_the_same_peak(simmim, step):
    """torch's own MemTracker, on a step without optimizer. Bug: storages that are counted twice, or not at all."""
    tracker = pytest.importorskip('torch.distributed._tools.mem_tracker', reason='this torch has none')
    cfg = deepcopy(simmim)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        model = MODELS.build(cfg.model).train()
    images = torch.empty(2, 3, *SMALL.shape, device='meta')
    memory = tracker.MemTracker()
    memory.track_external(model)
    from swinv2_mm.engine.costs.plan.machine import Autocast, as_on

    with as_on('cuda', Autocast(None, 'cuda')), memory, torch.device('meta'):
        model(images, mode='loss')['loss'].backward()
    (found,) = memory.get_tracker_snapshot('peak').values()
    parameters = sum(w.bytes for w in step.weights) + step.buffers
    assert step.peak + parameters == pytest.approx(found['Total'], rel=0.03)


def test_a_measured_peak_is_near(monkeypatch):
    """In a fresh process, by Linux. Bug: a plan that is right about itself alone."""
    benchmark = load_script(ROOT / 'benchmarks' / 'plan.py')
    row = benchmark.case('backbone', 'tiny', 192, batch=2)
    assert benchmark.planned(row)['total'] == pytest.approx(benchmark.measured(row), rel=0.15)


def test_the_largest_size_is_planned_without_its_memory():
    """3 billion parameters, 11 GiB. Bug: a plan that needs the machine that it is to choose."""
    cfg = with_arch(load(CONFIGS / 'simmim_swinv2_t_192.py'), 'giant')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = trace(cfg, Work((64, 64), 1))
    assert sum(w.bytes for w in found.weights) > 11 * GIB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize(
    'name', ['maskrcnn_swinv2_t_shapes', 'upernet_swinv2_t_shapes', 'retinanet_swinv2_t', 'simmim_swinv2_t_shapes']
)
def test_heads_of_all_kinds_are_planned(name):
    """Two-stage, dense, semantic and painting heads. Bug: a value that a head wants to know ends the plan, or a head
    that costs nothing."""
    cfg = narrow(name)
    found = trace(cfg, SMALL)
    heads = sum(w.bytes for w in found.weights if not w.name.startswith('backbone.'))
    assert heads > 0 and found.peak > 1e6
    assert all(w.state == 2 * w.bytes for w in found.weights if w.trained)


def test_values_are_known_until_somebody_writes_into_a_part():
    """Bug: a mask of the places that a head has filled counts none of them, as a view of the labels was written to."""
    with Answers(20):
        labels = torch.full((8,), 3, device='meta')
        assert labels.sum().item() == 24 and (labels == 3).nonzero().shape == (8, 1)
        assert (labels == 4).nonzero().shape == (0, 1)
        labels[:4].copy_(torch.empty(4, dtype=torch.int64, device='meta'))
        assert (labels == 4).nonzero().shape == (8, 1)


@pytest.fixture(scope='module')
def planned(simmim):
    return plan(simmim, 8, 80 * GIB, SMALL)


def test_every_setting_is_planned_and_the_fastest_comes_first(planned):
    """Bug: a setting that nobody hears of, or one that costs time though a faster one fits."""
    assert len({row.setting for row in planned.rows}) == len(planned.rows) == 24
    assert planned.fastest(True).setting == Setting('ddp', False, None, True)
    slowness = [row.setting.slowness for row in planned.rows]
    assert slowness == sorted(slowness)


def test_options_set_what_they_say(simmim, planned):
    """As a command line reads them. Bug: a line that is pasted and changes nothing, or something else."""
    for row in planned.rows:
        values, flags = options(planned.own, row.setting)
        cfg = deepcopy(simmim)
        cfg.merge_from_dict({key: DictAction._parse_iterable(value) for key, value in (v.split('=') for v in values)})
        found = planning.own_setting(cfg)
        assert (found.way, found.with_cp, found.attn_chunk) == (
            row.setting.way,
            row.setting.with_cp,
            row.setting.attn_chunk,
        )
        assert flags == (
            [] if row.setting.half == planned.own.half else ['--amp bf16' if row.setting.half else '--amp fp32']
        )


def test_numbers_that_are_none_are_refused(simmim):
    """Bug: a plan of nothing, or a traceback."""
    with pytest.raises(UserError, match='--batch: expected'):
        work_of(simmim, [64], 0, 4)
    with pytest.raises(UserError, match='--objects: expected'):
        work_of(simmim, [64], 1, 0)
    with pytest.raises(UserError, match='--shape: expected'):
        work_of(simmim, [64, 64, 3], 1, 4)
    with pytest.raises(UserError, match='--shape: the config does not say'):
        work_of(load(CONFIGS / 'maskrcnn_swinv2_t_shapes.py'), None, 1, 4)
    assert work_of(simmim, [64], None, 4) == Work((64, 64), simmim.train_dataloader.batch_size, 4)


def test_an_old_torch_is_named(monkeypatch):
    """Bug: a traceback from inside of torch."""
    monkeypatch.setattr(planning, 'VERSION', (2, 1))
    with pytest.raises(UserError, match=r'needs torch 2\.4 or newer'):
        plan(Config(dict(model={})), 8, GIB, SMALL)


def test_a_step_that_needs_values_is_named(simmim, monkeypatch):
    """Bug: a traceback from the middle of somebody's head, or a plan without it."""
    from swinv2_mm.models.simmim import SimMIM

    monkeypatch.setattr(SimMIM, 'loss', lambda model, *_: Path('/nowhere').read_text())
    with pytest.raises(UserError, match=r'step of SimMIM cannot run .*planned: FileNotFoundError'):
        trace(simmim, SMALL)


def test_what_is_sent(step):
    """By hand: 2 (n - 1) / n of the gradients for a sum, 3 (n - 1) / n of the parameters for FSDP2.

    Bug: a time on a link of other bytes.
    """
    parameters = sum(w.bytes for w in step.weights)
    assert all(w.trained for w in step.weights)
    for processes in (2, 8):
        part = (processes - 1) / processes
        found = {way: traffic(step, way, processes).total for way in ('ddp', 'zero1', 'fsdp2')}
        assert found['ddp'] == pytest.approx(2 * part * parameters, abs=2)
        assert found['zero1'] == pytest.approx(3 * part * parameters, abs=2)
        assert found['fsdp2'] == pytest.approx(3 * part * parameters, abs=2)
    assert traffic(step, 'ddp', 1).total == 0


def test_another_size_has_heads_that_take_it():
    """Bug: a size that cannot be built, and so is planned as none."""
    cfg = load(Path(CONFIGS) / 'upernet_swinv2_t.py')
    large = with_arch(cfg, 'large')
    assert list(large.model.decode_head.in_channels) == [192, 384, 768, 1536]
    assert large.model.auxiliary_head.in_channels == 768
    assert cfg.model.backbone.arch == 'tiny'
