"""Each epoch has its own seed: a resumed run draws the same random numbers as an uninterrupted one."""

import random

import numpy as np
import pytest
import torch
from support.resuming import RUNS, end_workers, same
from support.tiny_training import write_config

from swinv2_mm.engine.recipe.seeding import seed_everything
from swinv2_mm.engine.runs import prepare_training, train

pytestmark = pytest.mark.usefixtures('own_process')


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_seeds_every_generator_from_every_number():
    """Bug: a generator left out, or epochs, ranks and seeds mixed so that (seed 1, rank 2) equals (seed 2, rank 1)."""
    seed_everything(1, 2, 3)
    first = draw()
    draws = set(first)
    for numbers in ((1, 2, 4), (1, 3, 2), (2, 1, 3), (0, 2, 3)):
        seed_everything(*numbers)
        again = set(draw())
        assert not draws & again
        draws |= again
    seed_everything(1, 2, 3)
    assert draw() == first


def weights_after(tmp_path, name, resume=None, **settings):
    config = write_config(tmp_path, f'{name}.py', **settings)
    runner = train(prepare_training(config, work_dir=str(tmp_path / name), resume=resume))
    end_workers(runner)
    return runner.model.state_dict()


@pytest.mark.parametrize('run', RUNS)
def test_resuming_repeats_the_uninterrupted_run(run, tmp_path):
    """Bug: drop path goes on with another stream after a resume, or the data workers start over with the first one."""
    settings = RUNS[run]
    first = 'epoch_1.pth' if settings.get('by_epoch', True) else 'iter_3.pth'
    straight = weights_after(tmp_path, f'straight_{len(run)}', **settings)
    resumed = weights_after(tmp_path, f'resumed_{len(run)}', str(tmp_path / f'straight_{len(run)}' / first), **settings)
    assert same(straight, resumed)


def test_the_comparison_notices_history(tmp_path):
    """Without the hook the runs differ: the test above is able to fail."""
    settings = {'extra': 'custom_hooks = []\n'}
    straight = weights_after(tmp_path, 'straight', **settings)
    resumed = weights_after(tmp_path, 'resumed', str(tmp_path / 'straight' / 'epoch_1.pth'), **settings)
    assert not same(straight, resumed)


def test_workers_augment_epochs_differently(tmp_path):
    """Bug: workers that start over with the run's seed repeat the first epoch's augmentation in every epoch."""
    config = write_config(tmp_path, 'epochs.py', num_workers=2)
    runner = train(prepare_training(config, work_dir=str(tmp_path / 'epochs')))
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'EpochSeedHook')
    epochs = []
    for epoch in (0, 1, 0):
        runner.train_loop._epoch = epoch
        hook.before_train_epoch(runner)
        # The sampler's order belongs to mmengine and is left at the last epoch: only augmentation can differ.
        epochs.append(torch.stack([image for batch in runner.train_dataloader for image in batch['image']]))
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


def test_a_seed_of_chance_is_resumed(tmp_path):
    """Bug: without a seed in the config, the sampler of a resumed run shuffles with a seed of its own."""
    settings = {'extra': 'randomness = dict(seed=None)\n'}
    straight = weights_after(tmp_path, 'straight_chance', **settings)
    resumed = weights_after(tmp_path, 'resumed_chance', str(tmp_path / 'straight_chance' / 'epoch_1.pth'), **settings)
    assert same(straight, resumed)
