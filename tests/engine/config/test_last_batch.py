"""The last batch of an epoch, from the config alone."""

import pytest
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import BaseDataset, DefaultSampler
from mmengine.registry import DATASETS
from torch.utils.data import BatchSampler

from swinv2_mm.engine.config.batches import last_batch, pictures_of

UPRIGHT = {'width': 1, 'height': 2}, {'width': 2, 'height': 1}


class Pictures(list):
    def get_data_info(self, index):
        return UPRIGHT[index % 3 == 0]


class Listed(BaseDataset):
    def load_data_list(self):
        return [{}] * self._metainfo['length']


def smallest(pictures, processes, size, drop_last, round_up, batches, monkeypatch):
    """The smallest batch that mmengine's sampler and torch or MMDetection make of them; 0 if a process drops all."""
    found = []
    for rank in range(processes):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, processes))
        sampler = DefaultSampler(Pictures(range(pictures)), seed=0, round_up=round_up)
        if len(sampler):
            found.append(min(map(len, batches(sampler, size, drop_last)), default=0))
    return min(found)


@pytest.mark.parametrize('round_up', [False, True])
@pytest.mark.parametrize(
    ('batches', 'drop_last'), [(BatchSampler, False), (BatchSampler, True), (AspectRatioBatchSampler, False)]
)
def test_the_last_batch_is_the_smallest_that_the_samplers_make(batches, round_up, drop_last, monkeypatch):
    """Bug: the share of one of several processes is counted otherwise than the sampler does, and a batch of one
    ends a training after its first epoch, or one that would never occur refuses it."""
    for pictures in range(1, 10):
        for processes in (1, 2, 3):
            for size in (1, 2, 4):
                loader = {'batch_size': size, 'sampler': {'type': 'DefaultSampler', 'round_up': round_up}}
                place = loader
                if batches is AspectRatioBatchSampler:
                    place = loader['batch_sampler'] = {'type': 'mmdet.AspectRatioBatchSampler'}
                place['drop_last'] = drop_last
                expected = smallest(pictures, processes, size, drop_last, round_up, batches, monkeypatch)
                told = f'{pictures} pictures, {processes} processes, batches of {size}'
                assert last_batch(loader, pictures, processes) == expected, told


def test_a_partial_batch_counts_only_if_it_is_read():
    """Bug: three iterations of batches that are full are refused for a fourth that never comes."""
    loader = {'batch_size': 2, 'sampler': {'type': 'DefaultSampler'}}
    assert [last_batch(loader, 7, most=most) for most in (3, 4)] == [2, 1]
    assert last_batch({**loader, 'sampler': {'type': 'InfiniteSampler'}}, 7) == 2
    assert last_batch({**loader, 'sampler': {'type': 'OfTheirOwn'}}, 7) is None


def test_wrappers_are_as_long_as_those_of_mmengine():
    """Bug: a data set that is repeated counts once, so that another last batch is told than there is."""
    parts = [{'type': Listed, 'metainfo': {'length': length}} for length in (5, 2)]
    both = {'type': 'ConcatDataset', 'datasets': parts, 'ignore_keys': ['length']}
    config = {'type': 'RepeatDataset', 'times': 3, 'dataset': both}
    lengths = {'loader.dataset.dataset.datasets.0': 5, 'loader.dataset.dataset.datasets.1': 2}
    built = DATASETS.build(config)
    assert pictures_of(config, 'loader.dataset', lengths) == len(built)
    assert pictures_of(config, 'loader.dataset', {}) is None
    assert (
        pictures_of({'type': 'ClassBalancedDataset', 'dataset': {'type': 'A'}}, 'loader', {'loader.dataset': 5}) is None
    )
