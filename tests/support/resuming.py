"""Comparing a resumed run with an uninterrupted one, for each way to load data."""

from pathlib import Path

import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from swinv2_mm.engine.saving.reading import read_checkpoint

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
    iterator = loop.dataloader_iterator.iterator if hasattr(loop, 'dataloader_iterator') else loop.dataloader._iterator
    if isinstance(iterator, _MultiProcessingDataLoaderIter):
        iterator._shutdown_workers()


def same(one, other):
    """Whether two nested values are equal, tensors to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def left_in(work_dir):
    """What a run leaves in its work dir, but for a folder of logs per start."""
    files = {path.name: path for path in Path(work_dir).iterdir() if path.is_file()}
    note = Path(files.pop('last_checkpoint').read_text()).name
    return {'last_checkpoint': note} | {
        name: read_checkpoint(path) if path.suffix == '.pth' else None for name, path in files.items()
    }


def check_same(straight, resumed, why):
    assert straight.keys() == resumed.keys(), why
    assert straight['last_checkpoint'] == resumed['last_checkpoint'], why
    for name, checkpoint in straight.items():
        for part in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'):
            if name.endswith('.pth') and part in checkpoint:
                assert same(checkpoint[part], resumed[name][part]), (why, name, part)
