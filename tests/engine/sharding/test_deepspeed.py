"""DeepSpeed trains a config of ours as plain data parallelism does, or it is told what stands in the way.

What a config becomes is tested without DeepSpeed. The trainings need it, which is no dependency: they run where it is
installed, all in one pair of processes (deepspeed_trainings.py).
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import FlexibleRunner
from support.tiny_fixtures import ROOT, put_back
from support.tiny_training import write_config
from test_sharding import BASE, DECAY, RICH, TINY, UNSHARDED

from swinv2_mm.engine.recipe import precision
from swinv2_mm.engine.runs import prepare_test, prepare_training
from swinv2_mm.engine.runs import test as run_test
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.engine.sharding import deepspeed
from swinv2_mm.engine.sharding.deepspeed import DeepSpeedRunner, check, check_folder, translate
from swinv2_mm.errors import UserError
from swinv2_mm.registry import RUNNERS, STRATEGIES

PIECE = (BASE / 'sharding' / 'deepspeed.py').read_text()
OPTIMIZER = dict(type='AdamW', lr=1e-4)
TERMS = dict(type='DeepSpeedOptimWrapper', optimizer=OPTIMIZER)
NORM = dict(max_norm=1.0)
TRAINED = [path for path in UNSHARDED if not path.stem.endswith('_test')]


@pytest.mark.parametrize(
    ('wrapper', 'wanted', 'settings'),
    [
        (dict(type='OptimWrapper'), {}, dict(gradient_accumulation_steps=1)),
        (dict(clip_grad=None), {}, dict(gradient_accumulation_steps=1)),
        (
            dict(type='OptimWrapper', clip_grad=dict(NORM, norm_type=2), accumulative_counts=4),
            {},
            dict(gradient_accumulation_steps=4, gradient_clipping=1.0),
        ),
        (
            dict(
                type='AmpOptimWrapper',
                dtype='bfloat16',
                loss_scale=1.0,
                clip_grad=NORM,
                constructor='Layers',
                paramwise_cfg=dict(norm_decay_mult=0.0),
            ),
            dict(constructor='Layers', paramwise_cfg=dict(norm_decay_mult=0.0)),
            dict(
                gradient_accumulation_steps=1,
                gradient_clipping=1.0,
                torch_autocast=dict(enabled=True, dtype='bfloat16'),
            ),
        ),
    ],
)
def test_says_it_in_deepspeeds_terms(wrapper, wanted, settings):
    """Prevents: clipping, accumulation, precision or groups of weight decay that get lost on the way."""
    wrapper = dict(wrapper, optimizer=OPTIMIZER)
    before = dict(wrapper)
    assert translate(wrapper) == (TERMS | wanted, settings)
    assert wrapper == before


@pytest.mark.parametrize(
    ('arithmetic', 'settings'),
    [(True, dict(torch_autocast=dict(enabled=True, dtype='bfloat16'))), (False, {})],
)
def test_auto_is_what_the_machine_computes_in(arithmetic, settings, monkeypatch):
    """Prevents: autocast to a type that the processor emulates, and `--amp` refused where the processor lacks it."""
    monkeypatch.setattr(precision, 'computes', lambda device, dtype: arithmetic)
    monkeypatch.setattr(deepspeed, 'get_device', lambda: 'cpu')
    wrapper = dict(type='swinv2_mm.AmpOptimWrapper', dtype='auto', loss_scale='dynamic', optimizer=OPTIMIZER)
    assert translate(wrapper) == (TERMS, dict(settings, gradient_accumulation_steps=1))
    monkeypatch.setattr(deepspeed, 'get_device', lambda: 'cuda')
    if not arithmetic:
        with pytest.raises(UserError, match='mixed precision is bfloat16'):
            translate(wrapper)


@pytest.mark.parametrize(
    ('wrapper', 'message'),
    [
        (dict(clip_grad=dict(type='value', clip_value=1.0)), 'clips the 2-norm'),
        (dict(clip_grad=dict(NORM, norm_type=1)), 'clips the 2-norm'),
        (dict(type='AmpOptimWrapper', dtype='float16'), 'optim_wrapper.dtype=bfloat16'),
        (dict(type='AmpOptimWrapper'), 'optim_wrapper.dtype=bfloat16'),
        (dict(type='ApexOptimWrapper'), 'replaces OptimWrapper'),
        (dict(opt_level='O1'), 'optim_wrapper.opt_level'),
    ],
)
def test_refuses_other_steps(wrapper, message):
    """Prevents: a training that takes other steps than the config says, without a word."""
    with pytest.raises(UserError, match=message):
        translate(dict(wrapper, optimizer=OPTIMIZER))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(launcher='none'), 'dist_train.sh CONFIG 1'),
        (dict(custom_hooks=[dict(type='mmengine.EMAHook')]), 'zero1.py or fsdp2.py'),
        (dict(default_hooks=dict(timer=None, ema=dict(type='EMAHook'))), 'zero1.py or fsdp2.py'),
        (dict(sync_bn='torch'), 'sync_bn'),
        (dict(compile=True), 'compile'),
    ],
)
def test_refuses_other_runs(change, message):
    """Prevents: averaged weights that are never saved, settings without effect, DeepSpeed's search for an MPI."""
    cfg = dict(launcher='pytorch', custom_hooks=[dict(type='swinv2_mm.EpochSeedHook')], default_hooks=dict(timer=None))
    check(Config(cfg))
    with pytest.raises(UserError, match=message):
        check(Config(cfg | change))


@pytest.mark.parametrize('leaf', TRAINED, ids=lambda path: path.stem)
def test_piece_stands_next_to_any_config(tmp_path, monkeypatch, leaf):
    """Prevents: a piece that repeats a key of a schedule, settings that do not arrive, another batch size."""
    path = tmp_path / 'large.py'
    path.write_text(f"_base_ = ['{leaf}', '{BASE / 'sharding' / 'deepspeed.py'}']\n")
    cfg = Config.fromfile(path)
    cfg.launcher, cfg.load_from = 'pytorch', 'start.pth'
    monkeypatch.setattr(FlexibleRunner, 'from_cfg', classmethod(lambda cls, cfg: cfg))
    assert RUNNERS.get(cfg.runner_type) is DeepSpeedRunner and STRATEGIES.get(cfg.strategy.type) is not None
    built = RUNNERS.build(cfg)
    assert built.optim_wrapper.type == 'DeepSpeedOptimWrapper'
    assert built.optim_wrapper.paramwise_cfg == cfg.optim_wrapper.paramwise_cfg
    found = built.strategy.config
    assert found.gradient_clipping == cfg.optim_wrapper.clip_grad.max_norm
    assert found.train_micro_batch_size_per_gpu == cfg.train_dataloader.batch_size
    assert found.zero_optimization == cfg.strategy.config.zero_optimization and 'gradient_clipping' not in PIECE
    assert (built.strategy.load_from, built.load_from) == ('start.pth', None)


def test_absent_package(own_process, monkeypatch, tmp_path):
    """Told in one line for training, not needed for testing. Prevents: an AssertionError in the middle of the start."""
    monkeypatch.setattr('swinv2_mm.engine.checks.preflight.find_spec', lambda name: None)
    path = write_config(tmp_path, extra=PIECE)
    with pytest.raises(UserError, match='pip install deepspeed'):
        prepare_training(path, work_dir=str(tmp_path / 'run'))
    model = MODELS.build(Config.fromfile(path).model)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    cfg = prepare_test(path, str(tmp_path / 'weights.pth'), work_dir=str(tmp_path / 'run'))
    assert 'runner_type' not in cfg and 'strategy' not in cfg


def test_resumes_its_own_folders_alone(tmp_path):
    """Prevents: an ordinary or half-saved checkpoint that DeepSpeed warns of, and starts from random weights."""
    torch.save({'state_dict': {}}, tmp_path / 'epoch_1.pth')
    with pytest.raises(UserError, match=r'load_from=.*epoch_1.pth in the place of --resume'):
        check_folder(str(tmp_path / 'epoch_1.pth'))
    (tmp_path / 'epoch_2.pth').mkdir()
    with pytest.raises(UserError, match=r'weights.pth does not exist'):
        check_folder(str(tmp_path / 'epoch_2.pth'))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder with the configs and the work dirs of all trainings by two processes."""
    pytest.importorskip('deepspeed', reason='DeepSpeed is no dependency; install it to train with it')
    folder = tmp_path_factory.mktemp('deepspeed')
    plain = {'noise': False, 'batch_size': 1, 'train_cfg': 'dict(by_epoch=True, max_epochs=2, val_interval=1)'}
    tiny = plain | {'width': 96, 'batch_size': 4, 'train_cfg': 'dict(by_epoch=True, max_epochs=1, val_interval=2)'}
    rich = RICH.replace("custom_hooks.append(dict(type='EMAHook', momentum=0.1))", '')
    half = "optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')\n"
    for mode, piece in {'ddp': '', 'deepspeed': PIECE}.items():
        for name in ('plain', 'twice', 'start'):
            write_config(folder, f'{name}_{mode}.py', DECAY + piece, **plain)
        for name in (f'rich_{mode}', f'rich_{mode}_again'):
            write_config(folder, f'{name}.py', DECAY + rich + piece, **(plain | {'noise': True}))
    write_config(folder, 'tiny_deepspeed.py', DECAY + TINY + PIECE, **tiny)
    write_config(folder, 'half_deepspeed.py', DECAY + half + PIECE, **plain)
    paths = [ROOT, ROOT / 'tests', os.environ.get('PYTHONPATH', '')]
    both = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            '--nproc-per-node=2',
            ROOT / 'tests' / 'support' / 'deepspeed_trainings.py',
        ],
        cwd=folder,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=':'.join(map(str, paths))),
        capture_output=True,
        text=True,
    )
    assert both.returncode == 0, both.stderr
    return folder


def weights_and_steps(path):
    """Weights; and the last epoch's losses and learning rates with the numbers of epochs and steps."""
    checkpoint = read_checkpoint(path / 'weights.pth' if path.is_dir() else path)
    curves = [checkpoint['message_hub']['log_scalars'][name].data[0][-4:] for name in ('train/loss', 'train/lr')]
    return checkpoint['state_dict'], [*curves[0], *curves[1], checkpoint['meta']['epoch'], checkpoint['meta']['iter']]


def assert_same(path, expected_path):
    """The same weights, within rounding, after the same losses, learning rates and numbers of steps."""
    (weights, steps), (expected, wanted) = weights_and_steps(path), weights_and_steps(expected_path)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert weights[name].dtype == torch.float32
        assert (weights[name] - tensor).abs().max() <= 5e-6, name
    assert steps == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ('run', 'expected'),
    [
        *((f'rich_{stage}', 'rich_ddp') for stage in (1, 2, 3)),
        ('plain_offload', 'plain_ddp'),
        ('twice_deepspeed', 'twice_ddp'),
        ('start_deepspeed', 'start_ddp'),
    ],
)
@pytest.mark.parametrize('epoch', [1, 2])
def test_trains_like_data_parallelism(folder, run, expected, epoch):
    """Two processes end where plain data parallelism ends: at each stage, with offload, with steps of two iterations,
    and from another run's weights at a scaled learning rate.

    ``rich`` has a frozen stage, recomputed blocks, drop path, and models that the processes built with other numbers.
    Prevents: steps that are not clipped, decay of what should not decay, a learning rate that nothing scales, a start
    from random weights, and a first epoch that is noted as the second.
    """
    assert_same(folder / run / f'epoch_{epoch}.pth', folder / expected / f'epoch_{epoch}.pth')


@pytest.mark.parametrize('stage', [1, 2, 3])
def test_resumes(folder, stage):
    """Resuming ends in the uninterrupted run's weights. Prevents: a refused file, other seeds on the second process."""
    assert_same(folder / f'rich_{stage}_resumed' / 'epoch_2.pth', folder / f'rich_{stage}' / 'epoch_2.pth')


def test_mixed_precision_trains(folder):
    """Near the float32 run, not equal to it, and saved in float32. Prevents: ``--amp`` without effect."""
    half, full = (weights_and_steps(folder / run / 'epoch_2.pth')[0] for run in ('half_deepspeed', 'plain_ddp'))
    assert 1e-5 < max((half[name] - tensor).abs().max() for name, tensor in full.items()) < 0.2
    assert {tensor.dtype for tensor in half.values()} == {torch.float32}


@pytest.mark.parametrize(('checkpoint', 'plain'), [('epoch_2.pth/weights.pth', 'epoch_2.pth'), ('best_*.pth',) * 2])
def test_weights_are_tested_without_deepspeed(folder, monkeypatch, tmp_path, checkpoint, plain):
    """By the piece and by a plain config, as those of plain data parallelism. Prevents: weights that DeepSpeed alone
    can read.
    """
    monkeypatch.chdir(folder)
    (ours,), (theirs,) = folder.glob(f'rich_3/{checkpoint}'), folder.glob(f'rich_ddp/{plain}')
    with put_back():
        errors = [
            run_test(prepare_test(config, str(path), work_dir=str(tmp_path)))['error']
            for config, path in (('rich_deepspeed.py', ours), ('rich_ddp.py', ours), ('rich_ddp.py', theirs))
        ]
        with pytest.raises(UserError, match=r'is a folder.*There is .*epoch_2.pth/weights.pth'):
            prepare_test('rich_deepspeed.py', 'rich_3/epoch_2.pth', work_dir=str(tmp_path))
    assert errors == pytest.approx(errors[-1:] * 3, rel=1e-4)


def test_memory_per_process(folder):
    """Bytes that a process keeps of SwinV2-T and its AdamW, on two. Prevents: stages in name only.

    DeepSpeed's optimizer keeps a copy of its share of the parameters, in float32, too.
    """
    held = json.loads((folder / 'bytes.json').read_text())
    whole = 27.5e6 * 4
    for stage in ('1', '2', '3'):
        assert 0.4 * 3 * whole < held[stage]['optimizer'] < 0.6 * 3 * whole
        assert (held[stage]['parameters'] < 0.6 * whole) == (stage == '3')
