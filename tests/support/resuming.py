"""Comparing a resumed run with an uninterrupted one, for each way to load data."""

import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

BY_ITERATION = {'by_epoch': False, 'sampler': 'InfiniteSampler', 'train_cfg': 'dict(by_epoch=False, max_iters=6)'}
RUNS = {
    'main process': {'num_workers': 0},
    'workers': {'num_workers': 2},
    'persistent workers': {'num_workers': 2, 'persistent_workers': True},
    'iterations': dict(num_workers=1, **BY_ITERATION),
}


def end_workers(runner):
    """Left to the garbage collector, which finalizes their queues first, waiting workers take five seconds each."""
    loop = runner.train_loop
    iterator = loop.dataloader_iterator._iterator if hasattr(loop, 'dataloader_iterator') else loop.dataloader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()


def same(one, other):
    """Whether two nested values are equal, tensors to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
