"""The order of the training data: any batch is the same, whatever was loaded before it."""

from functools import partial

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from swinv2_mm.engine.recipe.seeding import seed_everything
from swinv2_mm.engine.saving.stopping.order import EndlessBatches, ordered, remembers


class Numbers(Dataset):
    """Forty samples with what a transform draws, sizes and classes; notes which ones were loaded."""

    metainfo = {'classes': ('a', 'b', 'c')}

    def __init__(self):
        self.loaded = []
        self.cumulative_sizes, self.datasets = [25, 40], [range(25), range(15)]

    def __len__(self):
        return 40

    def __getitem__(self, index):
        self.loaded.append(index)
        return {'index': index, 'drawn': float(np.random.rand() + torch.rand(()))}

    def get_data_info(self, index):
        return {'width': 10, 'height': 10 + index % 3 - 1}

    def get_cat_ids(self, index):
        return [index % 3]


class Choosing(DefaultSampler):
    """Draws from NumPy's global generator with every index."""

    def __iter__(self):
        for _ in range(len(self)):
            yield int(np.random.randint(len(self.dataset)))


def samplers():
    def mmdet(name, **arguments):
        return lambda data: getattr(pytest.importorskip('mmdet.datasets.samplers'), name)(data, seed=3, **arguments)

    return {
        'DefaultSampler': partial(DefaultSampler, seed=3),
        'InfiniteSampler': partial(InfiniteSampler, seed=3),
        'RandomSampler': RandomSampler,
        'a sampler that draws': partial(Choosing, seed=3),
        'ClassAwareSampler': mmdet('ClassAwareSampler'),
        'MultiSourceSampler': mmdet('MultiSourceSampler', batch_size=4, source_ratio=[1, 3]),
    }


def loader_of(sampler, aspect_ratios=False, epoch=2, **workers):
    """A loader that is in an epoch of its own, seeded."""
    data = Numbers()
    kind = pytest.importorskip('mmdet.datasets').AspectRatioBatchSampler if aspect_ratios else BatchSampler
    batches = kind(samplers()[sampler](data), 4, False)
    loader = DataLoader(data, batch_sampler=batches, collate_fn=pseudo_collate, **workers)
    order = ordered(loader)
    order.seed, order.epoch = partial(seed_everything, 7), epoch
    if hasattr(batches.sampler, 'set_epoch'):
        batches.sampler.set_epoch(epoch)
    seed_everything(1)
    return loader, order


def first(loader, number):
    """Its first batches; between two of them, the model draws."""
    found = []
    for batch in loader:
        found.append(batch)
        torch.rand(3), np.random.rand()
        if len(found) == number:
            break
    return found


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('aspect_ratios', [False, True])
@pytest.mark.parametrize('sampler', samplers())
def test_a_loader_goes_on_behind_any_batch(sampler, aspect_ratios, workers):
    """Bug: other samples, samples that are seen twice, other augmentation, or pictures loaded to be dropped."""
    if aspect_ratios and sampler == 'RandomSampler':
        pytest.skip('mmdet asks the sampler for its data set, which torch does not tell')
    straight = first(loader_of(sampler, aspect_ratios)[0], 8)
    for skip in (1, 5):
        loader, order = loader_of(sampler, aspect_ratios, num_workers=workers)
        order.first = skip
        seed_everything(skip)  # a resumed run is elsewhere in its stream
        assert first(loader, 8 - skip) == straight[skip:]
        if workers == 0:
            assert loader.dataset.loaded == [index for batch in straight[skip:] for index in batch['index']]
            assert len(loader) == 10


def test_the_batches_of_other_epochs_and_ranks_differ():
    """Bug: each epoch, or each process, augments alike."""
    draws = []
    for epoch, rank in ((0, 0), (1, 0), (0, 1)):
        loader, order = loader_of('DefaultSampler', epoch=epoch)
        order.rank = rank
        draws += [drawn for batch in loader for drawn in batch['drawn']]
    assert len({*draws}) == len(draws) == 120


def test_persistent_workers_take_each_epoch_by_its_number():
    """Bug: workers that live on begin the next epoch behind the batches that were skipped, or with its old order."""
    loader, order = loader_of('RandomSampler', num_workers=2, persistent_workers=True)
    order.first = 4
    assert first(loader, 10) == first(loader_of('RandomSampler')[0], 10)[4:]
    order.epoch = 3
    assert first(loader, 10) == first(loader_of('RandomSampler', epoch=3)[0], 10)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('sampler', ['DefaultSampler', 'InfiniteSampler', 'ClassAwareSampler'])
def test_endless_batches_go_on_in_any_pass(sampler, workers):
    """Bug: a run that counts iterations begins its pass again, or loads all of the past."""

    def batches(skip, number):
        loader, _ = loader_of(sampler, epoch=0, num_workers=workers)
        endless = EndlessBatches(loader, lambda: skip)
        assert [next(endless) for _ in range(skip)] == [None] * skip
        return loader, [next(endless) for _ in range(number)]

    straight = batches(0, 27)[1]
    assert [batch['index'] for batch in straight[:10]] != [batch['index'] for batch in straight[10:20]]
    for skip in (3, 10, 23):
        loader, found = batches(skip, 27 - skip)
        assert found == straight[skip:]
        assert workers or len(loader.dataset.loaded) == 4 * (27 - skip)


def test_a_data_set_that_loads_batches_by_itself_still_does():
    """Bug: torch's way to load a batch at once, which the seeds use, is taken from a data set that has it."""

    class Whole(Numbers):
        def __getitems__(self, indices):
            return [{'index': -index, 'drawn': float(torch.rand(()))} for index in indices]

    data = Whole()
    loader = DataLoader(data, batch_size=4, collate_fn=pseudo_collate)
    ordered(loader).seed = partial(seed_everything, 7)
    one, other = first(loader, 2), first(loader, 2)
    assert one == other and one[1]['index'] == [-4, -5, -6, -7]


def test_knows_transforms_that_remember():
    """Bug: a mosaic of pictures that a resumed run has not loaded, and so of others."""

    class Part:
        def __init__(self, **attributes):
            vars(self).update(attributes)

    cached = Part(results_cache=[])
    assert remembers(Part(dataset=Part(datasets=[Part(pipeline=Part(transforms=[Part(), Part(transforms=[cached])]))])))
    assert remembers(Part(pipeline=[Part(), cached]))
    assert not remembers(Part(dataset=Part(pipeline=Part(transforms=[Part()]))))
