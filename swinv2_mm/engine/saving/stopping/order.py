"""The order of the training data: from any batch on, without loading those before, with random numbers per batch."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader


class Batch(list):
    """The indices of a batch; ``seed`` seeds the random numbers by which it is loaded."""

    seed: Callable[[], None] | None = None


class Order:
    """A batch sampler that can skip batches, and that seeds each batch by its number.

    A batch is then the same whatever was loaded before it, in whichever data worker. A sampler that draws from the
    global generators gets numbers of its own, since those of the model depend on when the next batch is asked for.

    Args:
        sampler: The batch sampler of a data loader, whose other attributes stay visible.
    """

    def __init__(self, sampler: Any) -> None:
        self.sampler_of_batches = sampler
        self.epoch = self.first = 0
        self.seed: Callable[..., None] | None = None  # takes integers
        self.rank = 0
        self._begun: _Pass | None = None

    def __len__(self) -> int:
        return len(self.sampler_of_batches)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'sampler_of_batches':  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.sampler_of_batches, name)

    def __iter__(self) -> Iterator[Batch]:
        # With the first batch, not before: torch asks for an iterator twice, and uses the second.
        if self._begun is None:
            self.begin(self.first)
        begun, self._begun, self.first = self._begun, None, 0
        yield from begun or ()

    def begin(self, skip: int) -> int:
        """Have the next iteration start behind ``skip`` batches; return how many of these there are."""
        self._begun = _Pass(self)
        return self._begun.skip(skip)


class _Pass:
    """One iteration over the batches of an :class:`Order`."""

    def __init__(self, order: Order) -> None:
        self.number, self.seed = 0, order.seed and partial(order.seed, order.rank, order.epoch)
        self.stream = _Stream(order.seed and partial(order.seed, order.epoch))
        with self.stream:
            self.batches = iter(order.sampler_of_batches)

    def __iter__(self) -> '_Pass':
        return self

    def __next__(self) -> Batch:
        with self.stream:
            batch = Batch(next(self.batches))
        # The last word is not zero: NumPy mixes (1, 2) and (1, 2, 0) alike.
        batch.seed = self.seed and partial(self.seed, self.number, 1)
        self.number += 1
        return batch

    def skip(self, number: int) -> int:
        with self.stream:
            skipped = sum(1 for _ in islice(self.batches, number))
        self.number += skipped
        return skipped


class _Stream:
    """A context with its own state of the global generators; with no seed, it does nothing."""

    def __init__(self, seed: Callable[[], None] | None) -> None:
        self.mine: Any = None
        if seed is not None:
            others = _states()
            seed()
            self.mine = _states()
            _set_states(others)

    def __enter__(self) -> None:
        if self.mine is not None:
            self.others = _states()
            _set_states(self.mine)

    def __exit__(self, *_: object) -> None:
        if self.mine is not None:
            self.mine = _states()
            _set_states(self.others)


def _states() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_states(states: tuple) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def ordered(loader: DataLoader) -> Order | None:
    """Put an :class:`Order` into a data loader that has no workers yet; None if it has no batch sampler."""
    loader_: Any = loader
    if loader_.batch_sampler is None:
        return None
    if not isinstance(loader_.batch_sampler, Order):
        # torch refuses a new one, since the workers may have begun with the old one.
        object.__setattr__(loader, 'batch_sampler', Order(loader_.batch_sampler))
        # torch asks for it in front of `__getitem__`.
        loader_.dataset.__getitems__ = partial(_load, loader_.dataset)
        spare_workers(loader)
    return loader_.batch_sampler


def _load(dataset: Any, batch: list) -> list:
    seed = getattr(batch, 'seed', None)
    if seed is not None:
        seed()
    own = getattr(type(dataset), '__getitems__', None)
    return own(dataset, batch) if own else [dataset[index] for index in batch]


def remembers(part: Any) -> bool:
    """Whether a transform of a data set keeps pictures of earlier batches, as mmdet's CachedMosaic does."""
    if isinstance(part, list | tuple):
        return any(map(remembers, part))
    names = ('dataset', 'datasets', 'pipeline', 'transforms')
    inner = [getattr(part, name) for name in names if getattr(part, name, None) is not None]
    return hasattr(part, 'results_cache') or any(map(remembers, inner))


def set_epoch(loader: Any, epoch: int) -> None:
    """Tell the sampler of a loader its epoch, as mmengine does."""
    for sampler in (loader.sampler, getattr(loader.batch_sampler, 'sampler', None)):
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(epoch)
            return


def spare_workers(loader: DataLoader) -> None:
    """Let data workers outlive a signal to end the run: they are needed until its iteration is finished.

    Slurm and torchrun send signals to all processes of a group.
    """
    loader_: Any = loader
    loader_.worker_init_fn = partial(_start_worker, loader_.worker_init_fn)


def _start_worker(then: Callable[[int], None] | None, worker: int) -> None:
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    if then is not None:
        then(worker)


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class EndlessBatches:
    """The batches of a loader, pass after pass; the workers start with the first one.

    Args:
        loader: It has an :class:`Order`.
        skip: Called before the first batch: how many of the batches are past, which are not loaded.
    """

    def __init__(self, loader: DataLoader, skip: Callable[[], int]) -> None:
        self.loader, self.skip, self.dropped = loader, skip, 0
        self.iterator: Any = None

    def __iter__(self) -> 'EndlessBatches':
        return self

    def __next__(self) -> Any:
        if self.iterator is None:
            if self.dropped < self.skip():  # mmengine asks for each of these, to drop it
                self.dropped += 1
                return None
            self._begin(self.skip())
        try:
            return next(self.iterator)
        except StopIteration:
            self._next_pass()
            self._begin(0)
            return next(self.iterator)

    def _begin(self, skip: int) -> None:
        order: Any = ordered(self.loader)
        while (skipped := order.begin(skip)) < skip:
            if skipped == 0:
                raise StopIteration  # there are no data
            skip -= skipped
            self._next_pass()
        self.iterator = iter(self.loader)

    def _next_pass(self) -> None:
        order: Any = ordered(self.loader)
        order.epoch += 1
        set_epoch(self.loader, order.epoch)
