"""A loss that is not finite stops training in front of the update, and says where it began."""

import multiprocessing
import os
import re
import socket
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from support.poisoned_training import EXTRA, LOSSES
from support.tiny_training import write_config

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
VARIANTS = {
    'plain': ('', None),
    'bf16': ('', 'bf16'),
    'no clipping': ("optim_wrapper.pop('clip_grad')\n", None),
    'averaged': ("custom_hooks.append(dict(type='EMAHook', momentum=0.5))\n", None),
    'accumulated': ("optim_wrapper['accumulative_counts'] = 2\n", None),
    'iterations': ('', None),
}


def poisoned(tmp_path, poison, extra='', **settings):
    return write_config(tmp_path, 'poisoned.py', EXTRA.format(poison=poison) + extra, **settings)


def stopped(config, **arguments):
    with pytest.raises(UserError) as error:
        train(prepare_training(config, work_dir='run', **arguments))
    return str(error.value)


def finite(weights):
    """Running statistics aside: the forward pass of the step itself has updated them."""
    return all(tensor.isfinite().all() for name, tensor in weights.items() if 'running_' not in name)


@pytest.mark.parametrize('poison', ['forward', 'backward'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_stops_in_front_of_the_update_and_names_the_module(poison, variant, tmp_path, run_tool, capsys):
    """Bug: training goes on with weights of NaN and saves them; or the wrong module, batch or weights are told."""
    extra, amp = VARIANTS[variant]
    settings = {'by_epoch': False, 'train_cfg': 'dict(by_epoch=False, max_iters=8)'} if variant == 'iterations' else {}
    config = poisoned(tmp_path, poison, extra + "custom_hooks.append(dict(type='KeepHook'))\n", **settings)
    assert run_tool('train', config, '--work-dir', 'run', *(['--amp', amp] if amp else [])) == 2
    said = capsys.readouterr().err
    error = said[said.index('error: ') :]
    assert len(error.strip().splitlines()) == 1
    assert re.search(r'bad module is poison, which', error), error
    assert re.search(r'The batch, (epoch 1, )?iteration \d of [48]: [^:]*\b5\.png', error), error
    assert finite(KEPT[-1].model.state_dict())
    for checkpoint in map(read_checkpoint, Path('run').glob('[ei]*.pth')):
        assert all(tensor.isfinite().all() for tensor in checkpoint['state_dict'].values())


KEPT = []


@HOOKS.register_module()
class KeepHook(Hook):
    """Keeps the runner of a training that is going to fail."""

    def before_train(self, runner):
        KEPT.append(runner)


def test_repeats_the_step_exactly(tmp_path):
    """Bug: another drop path and dropout, in which the numbers may well be finite."""
    stopped(poisoned(tmp_path, 'backward'))
    assert LOSSES[-1] == pytest.approx(LOSSES[-2], rel=1e-6) and abs(LOSSES[-2] - LOSSES[-3]) > 1e-4


def test_infinite_gradients_are_the_loss_scale_s_business(tmp_path):
    """Bug: float16 stops while its scale is still searched for, or goes on through losses of NaN."""
    scale = 'optim_wrapper.update(loss_scale=dict(init_scale=2.0**40, growth_interval=10**6))\n'
    scale += "optim_wrapper['optimizer'].update(fused=True)\n"  # which is called even where its update is left out
    runner = train(prepare_training(poisoned(tmp_path, 'none', scale), work_dir='run', amp='fp16'))
    assert runner.optim_wrapper.loss_scaler.get_scale() < 2.0**40
    error = stopped(poisoned(tmp_path, 'forward'), amp='fp16')
    assert 'bad module is poison' in error and '5.png' in error


def test_an_exception_over_nan_is_explained(tmp_path):
    """Bug: DINO and Mask2Former match by costs, and of NaN they say: matrix contains invalid numeric entries."""
    error = stopped(poisoned(tmp_path, 'refused'))
    assert 'ValueError: matrix contains invalid' in error and 'bad module is poison' in error and '5.png' in error


def test_other_exceptions_are_left_alone(tmp_path):
    """Bug: whatever fails is blamed on numbers, or its traceback is lost."""
    config = poisoned(tmp_path, 'none', "custom_hooks.append(dict(type='FailingHook'))\n")
    with pytest.raises(ValueError, match='of another cause'):
        train(prepare_training(config, work_dir='run'))


@HOOKS.register_module()
class FailingHook(Hook):
    """Fails behind the second iteration."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 1:
            raise ValueError('of another cause')


def test_the_hook_can_be_switched_off(tmp_path):
    """Bug: who wants to see a run through NaN cannot."""
    runner = train(prepare_training(poisoned(tmp_path, 'forward'), cfg_options={'default_hooks.non_finite': None}))
    assert runner.iter == 12


def train_as(rank, port, amp):
    """One of two processes; leaves what it was told in a file."""
    launched = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2, 'MASTER_ADDR': 'localhost', 'MASTER_PORT': port}
    os.environ.update({name: str(value) for name, value in launched.items()})
    torch.set_num_threads(1)
    error = stopped('poisoned.py', launcher='pytorch', amp=amp)
    Path(f'error_{rank}.txt').write_text(error)


@pytest.mark.parametrize(('extra', 'amp'), [VARIANTS['plain'], VARIANTS['accumulated'], ('', 'fp16')])
def test_all_processes_stop_and_name_the_one(extra, amp, tmp_path):
    """Bug: the process with the bad image stops, the others wait for it; or each names another batch."""
    poisoned(tmp_path, 'forward', extra + "train_dataloader['sampler'].update(shuffle=False)\n")
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context('fork')
    both = [fork.Process(target=train_as, args=(rank, port, amp)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    errors = {Path(f'error_{rank}.txt').read_text() for rank in (0, 1)}
    assert len(errors) == 1
    assert re.search(r'bad module is poison.*batch of process 1.*5\.png', errors.pop())  # odd images are process 1's
