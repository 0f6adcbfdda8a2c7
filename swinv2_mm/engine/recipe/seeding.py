"""Exact resuming: each iteration has its own seed, so that a resumed run repeats an uninterrupted one.

In mmengine the main process draws from one stream from start to end (drop path, RoI sampling), data workers get the
same seeds at each start, and persistent workers keep their streams across epochs. ``EpochSeedHook`` replaces all three.
"""

import random
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from swinv2_mm.engine.saving.stopping.order import Order, ordered
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

    Use as ``worker_init_fn=dict(type='swinv2_mm.seed_worker')`` without ``EpochSeedHook``, which seeds each batch.
    """
    seed_everything(torch.initial_seed() % 2**64)


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seed the random numbers of each iteration, of the model and of its batch, from the run's seed, the place in
    training and the rank.

    With it, ``--resume`` ends in the same weights as an uninterrupted run, on the same number of processes. In a loop
    over iterations that is mmengine's own, exactness needs ``num_workers >= 1``, or loading would draw from the model's
    stream.
    """

    # The last hook before an epoch and before an iteration: nothing may draw between this and what it is for.
    priority = 'LOWEST'

    _order: Order | None = None

    def before_train(self, runner: Runner) -> None:
        loader: Any = runner.train_dataloader
        # mmengine's own loop over iterations has started its workers already.
        self._order = ordered(loader) if _by_epoch(runner) or isinstance(loader.batch_sampler, Order) else None
        if self._order is not None:
            self._order.seed, self._order.rank = partial(seed_everything, runner.seed), runner.rank

    def before_train_epoch(self, runner: Runner) -> None:
        seed_everything(runner.seed, runner.epoch, runner.rank)
        if self._order is not None and _by_epoch(runner):
            self._order.epoch = runner.epoch
            if runner.train_dataloader.persistent_workers:
                # Persistent workers would keep what transforms remember of earlier pictures: let this epoch start new
                # ones, as a resumed run does (a private name of torch).
                runner.train_dataloader._iterator = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        seed_everything(runner.seed, runner.iter, runner.rank)


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)
