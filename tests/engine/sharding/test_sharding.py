"""ZeRO-1 and FSDP2 train like plain data parallelism, in less memory per process, with the same checkpoints.

All trainings of two processes happen in one pair of them (sharded_trainings.py), before the first test.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from support import ROOT, run_process
from support.tiny_fixtures import put_back
from support.tiny_training import write_config
from support.zoo import families, load

from swinv2_mm.engine.runs import prepare_test, prepare_training, train
from swinv2_mm.engine.runs import test as run_test
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.engine.sharding.gathering import GatheringRunner
from swinv2_mm.errors import UserError
from swinv2_mm.registry import RUNNERS

BASE = ROOT / 'configs' / '_base_'
PIECES = {'ddp': '', **{mode: (BASE / 'sharding' / f'{mode}.py').read_text() for mode in ('zero1', 'fsdp2')}}
# The groups of the schedules, and a norm that clips each step.
DECAY = f"""
optim_wrapper.update(paramwise_cfg={Config.fromfile(BASE / 'schedules' / 'adamw.py').optim_wrapper.paramwise_cfg})
optim_wrapper['optimizer'].update(weight_decay=0.05)
optim_wrapper['clip_grad'].update(max_norm=0.05)
"""
RICH = """
custom_hooks.append(dict(type='EMAHook', momentum=0.1))
model['backbone'].update(frozen_stages=1, with_cp=True)
randomness.update(diff_rank_seed=True)
optim_wrapper.update(constructor='swinv2_mm.LayerDecayOptimWrapperConstructor')
optim_wrapper['paramwise_cfg'].update(decay_rate=0.9)
"""
TINY = """
model['backbone'].update(depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), out_indices=(3,))
default_hooks['checkpoint'] = None
"""
UNSHARDED = [path for path in sorted((ROOT / 'configs').glob('*.py')) if 'sharding' not in path.read_text()]
SHARED = ('train/grad_norm', 'val/error')  # a loss is logged of the first process's images alone


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder with the configs and the work dirs of all trainings by two processes, and of one by one process."""
    folder = tmp_path_factory.mktemp('sharding')
    plain = {'noise': False, 'batch_size': 1, 'train_cfg': 'dict(by_epoch=True, max_epochs=2, val_interval=1)'}
    rich = plain | {'noise': True}
    tiny = plain | {'width': 96, 'batch_size': 4, 'train_cfg': 'dict(by_epoch=True, max_epochs=1, val_interval=2)'}
    for mode, piece in PIECES.items():
        write_config(folder, f'plain_{mode}.py', DECAY + piece, **plain)
        write_config(folder, f'plain_{mode}_from_one.py', DECAY + piece, **plain)
        write_config(folder, f'plain_{mode}_one.py', DECAY + piece, **(plain | {'batch_size': 2}))
        write_config(folder, f'rich_{mode}.py', DECAY + RICH + piece, **rich)
        write_config(folder, f'rich_{mode}_again.py', DECAY + RICH + piece, **rich)
        write_config(folder, f'tiny_{mode}.py', DECAY + TINY + piece, **tiny)
    write_config(folder, 'bfloat16_fsdp2.py', DECAY + PIECES['fsdp2'].replace('float32', 'bfloat16', 1), **plain)
    write_config(folder, 'offload_fsdp2.py', DECAY + PIECES['fsdp2'].replace('False', 'True', 1), **plain)
    with put_back():
        here = Path.cwd()
        os.chdir(folder)
        train(prepare_training('plain_ddp_one.py', work_dir='plain_one'))
        os.chdir(here)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    both = run_process(*torchrun, ROOT / 'tests' / 'support' / 'sharded_trainings.py', cwd=folder)
    assert both.returncode == 0, both.stderr
    return folder


@pytest.fixture
def inside(folder, monkeypatch):
    """Work in that folder, in a process that is put back."""
    monkeypatch.chdir(folder)
    with put_back():
        yield


def assert_same(path, expected_path, tolerance=2e-5, logged=('train/grad_norm', 'val/error', 'train/loss')):
    """The same weights, optimizer state and groups, and logged numbers in two checkpoints."""
    checkpoint, expected = read_checkpoint(path), read_checkpoint(expected_path)
    assert checkpoint.keys() == expected.keys()
    assert checkpoint['meta']['iter'] == expected['meta']['iter']
    for part in ('state_dict', 'ema_state_dict'):
        close(checkpoint.get(part, {}), expected.get(part, {}), tolerance)
    optimizer, wanted = checkpoint['optimizer'], expected['optimizer']
    # AdamW is fused on a CPU where it is not sharded.
    groups = [[group | {'fused': None} for group in side['param_groups']] for side in (optimizer, wanted)]
    assert groups[0] == groups[1]
    assert optimizer['state'].keys() == wanted['state'].keys()
    for index, state in wanted['state'].items():
        close(optimizer['state'][index], state, tolerance)
    found, wanted = (c['message_hub']['log_scalars'] for c in (checkpoint, expected))
    for name in logged:
        assert found[name].data[0] == pytest.approx(wanted[name].data[0], rel=1e-4), name


def close(tensors, expected, tolerance):
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert type(tensors[name]) is torch.Tensor, name
        assert (tensors[name] - tensor).abs().max() <= tolerance, name


@pytest.mark.parametrize('mode', ['zero1', 'fsdp2'])
@pytest.mark.parametrize('setting', ['plain', 'rich'])
def test_trains_like_data_parallelism(folder, mode, setting):
    """Two processes end where plain data parallelism ends, step by step; the groups of weight decay are those, too.

    ``rich`` has a frozen stage, recomputed blocks, averaged weights (validated with, saved beside), drop path,
    layer-wise learning-rate decay, and models that the processes built with other numbers. Prevents: shards of
    different models, gradients summed over processes, a norm of one shard that clips, averages of one shard, a kept
    position bias of other weights in validation, and a first process that waits for ever for the others to save.
    """
    assert_same(folder / f'{setting}_{mode}' / 'epoch_2.pth', folder / f'{setting}_ddp' / 'epoch_2.pth')
    start = read_checkpoint(folder / f'{setting}_ddp' / 'epoch_1.pth')['state_dict']
    end = read_checkpoint(folder / f'{setting}_ddp' / 'epoch_2.pth')['state_dict']
    assert max((end[name] - start[name]).abs().max() for name in end) > 1e-3  # or any two runs would be equal
    norms = read_checkpoint(folder / f'{setting}_{mode}' / 'epoch_2.pth')['message_hub']['log_scalars']
    assert min(norms['train/grad_norm'].data[0]) > 0.05  # so each step was clipped


@pytest.mark.parametrize('mode', ['zero1', 'fsdp2'])
def test_two_processes_resume_to_the_weights_of_an_uninterrupted_run(folder, mode):
    """Resuming on two processes ends in the uninterrupted run's weights. Prevents: state of another parameter."""
    assert_same(folder / f'rich_{mode}_resumed' / 'epoch_2.pth', folder / f'rich_{mode}' / 'epoch_2.pth', 1e-6)


@pytest.mark.parametrize('mode', ['zero1', 'fsdp2'])
def test_two_processes_resume_what_one_began(folder, mode):
    """From one process to two: the same steps. Prevents: checkpoints that only their number of processes can read."""
    assert_same(folder / f'plain_{mode}_from_one' / 'epoch_2.pth', folder / 'plain_one' / 'epoch_2.pth', logged=SHARED)


@pytest.mark.parametrize('launcher', ['none', 'pytorch'])
@pytest.mark.parametrize('mode', ['zero1', 'fsdp2'])
def test_one_process_resumes_what_two_began(inside, monkeypatch, tmp_path, mode, launcher):
    """From two processes to one, alone or under torchrun. Prevents: a group of processes asked for where is none."""
    if launcher == 'pytorch':
        for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='localhost', MASTER_PORT=0).items():
            monkeypatch.setenv(name, str(value))
    train(
        prepare_training(
            f'plain_{mode}_one.py', work_dir=str(tmp_path), resume=f'plain_{mode}/epoch_1.pth', launcher=launcher
        )
    )
    assert_same(tmp_path / 'epoch_2.pth', f'plain_{mode}/epoch_2.pth', logged=SHARED)


def test_sharded_weights_are_tested_without_shards(inside, tmp_path, folder):
    """A plain config, the sharded one, and two processes measure the same. Prevents: a format of its own."""
    errors = [
        run_test(prepare_test(f'rich_{mode}.py', 'rich_fsdp2/epoch_2.pth', work_dir=str(tmp_path)))['error']
        for mode in ('ddp', 'zero1', 'fsdp2')
    ]
    together = json.loads((folder / 'metrics.json').read_text())['error']
    assert [*errors, together] == pytest.approx([errors[0]] * 4, rel=1e-5)


@pytest.mark.parametrize('mode', PIECES)
def test_layers_have_their_rates(folder, mode):
    """A parameter's rate follows from its layer, its weight decay from its name, whoever holds it, to the last step.

    Prevents: names that a wrapper or a shard changes, by which the whole backbone learns at the heads' rate.
    """
    checkpoint = read_checkpoint(folder / f'rich_{mode}' / 'epoch_2.pth')
    groups = checkpoint['optimizer']['param_groups']
    rates = {group['group_name']: group['initial_lr'] for group in groups}
    # Three blocks. The first is frozen, but not the downsampling behind it, which belongs to its layer.
    assert rates == pytest.approx(
        {f'layer_{layer}_{kind}': 1e-2 * 0.9 ** (4 - layer) for layer in (4, 3, 2, 1) for kind in ('decay', 'no_decay')}
    )
    assert len({round(group['lr'] / group['initial_lr'], 9) for group in groups}) == 1
    assert {(group['group_name'].endswith('no_decay'), group['weight_decay']) for group in groups} == {
        (True, 0.0),
        (False, 0.05),
    }


def test_blocks_in_bfloat16_train(folder):
    """Finite, near the float32 run, not equal to it, and saved in float32. Prevents: an option without effect."""
    half, full = (read_checkpoint(folder / f'{name}_fsdp2' / 'epoch_2.pth') for name in ('bfloat16', 'plain'))
    apart = [(half['state_dict'][name] - tensor).abs().max().item() for name, tensor in full['state_dict'].items()]
    assert 1e-5 < max(apart) < 0.2
    weights = [tensor for tensor in half['state_dict'].values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in weights} == {torch.float32}


def test_offloaded_training_ends_in_the_same_weights(folder):
    """Over gloo on a CPU, where everything already lies in main memory. Prevents: an option that breaks checkpoints."""
    assert_same(folder / 'offload_fsdp2' / 'epoch_2.pth', folder / 'plain_ddp' / 'epoch_2.pth')


def test_memory_per_process(folder):
    """Bytes that a process keeps of SwinV2-T and its AdamW, on two: at most 60 % where divided, all elsewhere.

    Prevents: sharding in name only.
    """
    held = json.loads((folder / 'bytes.json').read_text())
    whole, zero1, fsdp2 = held['ddp'], held['zero1'], held['fsdp2']
    assert whole['parameters'] > 27e6 * 4 and whole['optimizer'] > 27e6 * 8
    assert zero1['parameters'] == whole['parameters'] and zero1['optimizer'] < 0.6 * whole['optimizer']
    assert fsdp2['parameters'] < 0.6 * whole['parameters'] and fsdp2['optimizer'] < 0.6 * whole['optimizer']


@pytest.mark.parametrize('leaf', families(UNSHARDED))
@pytest.mark.parametrize('mode', ['zero1', 'fsdp2'])
def test_pieces_stand_next_to_any_config(tmp_path, mode, leaf):
    """Prevents: a piece that repeats a key of a schedule, which mmengine refuses, or that names no runner."""
    load(leaf)  # or skip it, where its framework is not installed
    path = tmp_path / 'large.py'
    path.write_text(f"_base_ = ['{leaf}', '{BASE / 'sharding' / mode}.py']\n")
    assert issubclass(RUNNERS.get(Config.fromfile(path).runner_type), GatheringRunner)


def test_an_unknown_optimizer_or_option_is_named(inside, monkeypatch, tmp_path):
    """Prevents: an AttributeError of torch for an optimizer that ZeRO does not know, or for a misspelt type."""
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR='localhost', MASTER_PORT=0).items():
        monkeypatch.setenv(name, str(value))
    OPTIMIZERS.register_module('OwnSGD', force=True, module=type('OwnSGD', (torch.optim.SGD,), {}))
    for config, options, message in (
        ('plain_zero1.py', {'optim_wrapper.optimizer.type': 'OwnSGD'}, 'none of them'),
        ('bfloat16_fsdp2.py', {'fsdp2.block_dtype': 'bf16'}, "'bf16': set it to"),
        ('offload_fsdp2.py', {'fsdp2.offload': 'cpu'}, "offload='cpu': set it to True"),
    ):
        with pytest.raises(UserError, match=message):
            train(prepare_training(config, work_dir=str(tmp_path), cfg_options=options, launcher='pytorch'))
        torch.distributed.destroy_process_group()
