"""Exact resuming: each epoch has its own seed, so that a resumed run repeats an uninterrupted one.

In mmengine the main process draws from one stream from start to end (drop path, RoI sampling), data workers get the
same seeds at each start, and persistent workers keep their streams across epochs. ``EpochSeedHook`` resets all three.
"""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dataset import worker_init_fn as mmengine_worker_init_fn
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from swinv2_mm.registry import FUNCTIONS, HOOKS


def seed_everything(*entropy: int) -> None:
    """Seed Python's, NumPy's and torch's global generators from a few integers, each of which matters."""
    words = np.random.SeedSequence([int(number) for number in entropy]).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


@FUNCTIONS.register_module()
def seed_worker(worker_id: int) -> None:
    """Seed a data worker from the main process, whose number torch has seeded the worker's generator with.

    Use as ``worker_init_fn=dict(type='swinv2_mm.seed_worker')``; ``EpochSeedHook`` replaces mmengine's default by it.
    """
    seed_everything(torch.initial_seed() % 2**64)


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed all randomness of an epoch from (the run's seed, epoch, rank) before its data workers start.

    With it, ``--resume`` ends in the same weights as an uninterrupted run, on the same number of processes and workers.
    An iteration-based loop, which loads the data of past iterations again, is seeded before each iteration; exactness
    needs ``num_workers >= 1`` there, or loading would draw from the model's stream.
    """

    # The last hook before an epoch: nothing may draw between this and the start of the epoch's workers.
    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        loader: Any = runner.train_dataloader
        default = isinstance(loader.worker_init_fn, partial) and loader.worker_init_fn.func is mmengine_worker_init_fn
        if _by_epoch(runner) and (default or loader.worker_init_fn is None):
            loader.worker_init_fn = seed_worker

    def before_train_epoch(self, runner: Runner) -> None:
        seed_everything(runner.seed, runner.epoch, runner.rank)
        if _by_epoch(runner) and runner.train_dataloader.persistent_workers:
            # Persistent workers would continue their streams: let this epoch start new ones (a private name of torch).
            runner.train_dataloader._iterator = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        if not _by_epoch(runner):
            seed_everything(runner.seed, runner.iter, runner.rank)


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)
