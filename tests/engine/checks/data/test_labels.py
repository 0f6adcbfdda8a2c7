"""Data sets whose pictures have a label each: folders, labels and accuracy agree with the classes, and are counted."""

from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import BaseDataset

from swinv2_mm.engine.census.table import census_table
from swinv2_mm.engine.census.taking import take_census
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.labels import check_folders_alike, check_number_of_folders, check_topk
from swinv2_mm.engine.checks.weights import starts_from_noise
from swinv2_mm.errors import UserError

KEY = 'train_dataloader.dataset'


def census_of(*labels, classes=('a', 'b', 'c')):
    """Of pictures that exist, since there is only one."""

    class Labelled(BaseDataset):
        def load_data_list(self):
            return [{'img_path': __file__, 'gt_label': label} for label in labels]

    dataset = Labelled(metainfo={'classes': classes}, serialize_data=False)
    return take_census(dataset, KEY, {}, None, tolerant=False)


def test_pictures_are_counted_by_class():
    """As pictures, and a class without one is named. Bug: a table of objects that classification does not have."""
    census = census_of(0, np.int64(2), 0)
    assert census.pictures == 3 and dict(census.objects) == {0: 2, 2: 1}
    assert [warning.partition(': no ')[2] for warning in census.warnings] == ['picture of b; this cannot be learned.']
    assert census_table([census]).split() == 'data pictures train 3 class train, pictures a 2 b 0 c 1'.split()


@pytest.mark.parametrize('label', [3, -1])
def test_a_label_of_no_class_is_refused(label):
    """Bug: an assertion of the device in the first iteration that meets it."""
    with pytest.raises(UserError, match=rf'^{KEY}: .*label {label} is none of its 3 classes'):
        census_of(0, 1, 2, label)


def test_several_labels_are_left_to_the_framework():
    """Bug: an unhashable list of labels."""
    assert census_of([0, 1], [2]).objects is None


def test_folders_have_one_order():
    """Bug: a folder that one split lacks moves the labels of all behind it, and nothing says so."""
    train, val = ({name: label for label, name in enumerate(names)} for names in ('abd', 'acd'))
    for other in (val, {'a': 0, 'b': 1}):
        with pytest.raises(UserError, match="train has a folder '[bd]', and val has none"):
            check_folders_alike({'train': SimpleNamespace(folder_to_idx=train), 'val': SimpleNamespace(folder_to_idx=other)})
    listed = SimpleNamespace()  # by an annotation file
    check_folders_alike({'train': SimpleNamespace(folder_to_idx=train), 'val': SimpleNamespace(folder_to_idx=train)})
    check_folders_alike({'train': listed, 'val': SimpleNamespace(folder_to_idx=val)})


def test_as_many_folders_as_classes(tmp_path):
    """The message has what to set. Bug: an assertion of MMPretrain's, without the keys."""
    for name in 'ab':
        (tmp_path / name).mkdir()
    (tmp_path / 'notes.txt').touch()
    dataset = SimpleNamespace(
        metainfo={'classes': ('x', 'y')}, data_prefix={'img_path': str(tmp_path)}, ann_file='', with_label=True
    )
    check_number_of_folders(dataset, KEY)
    dataset.metainfo = {'classes': ('x', 'y', 'z')}
    with pytest.raises(UserError, match=rf'has 2 folders \(a, b\).* 3 classes.*set {KEY}\.classes.*num_classes=2'):
        check_number_of_folders(dataset, KEY)
    for change in ({'ann_file': 'train.txt'}, {'with_label': False}, {'metainfo': {}}):
        check_number_of_folders(SimpleNamespace(**vars(dataset) | change), KEY)


@pytest.mark.parametrize(('topk', 'fits'), [((1, 5), False), (5, False), (3, True), ((1,), True), (None, True)])
def test_accuracy_counts_guesses_that_there_are(topk, fits):
    """Bug: the first validation fails, after an epoch."""
    metric = {'type': 'Accuracy'} | ({} if topk is None else {'topk': topk})
    cfg = Config({'default_scope': 'mmpretrain', 'val_evaluator': [{'type': 'SingleLabelMetric'}, metric]})
    context = Context(('train', 'val'), classes={'val_dataloader.dataset': 'abc'})
    if fits:
        check_topk(cfg, context)
    else:
        with pytest.raises(UserError, match=r'^val_evaluator\.1\.topk=.* of 3 classes.*val_evaluator\.1\.topk=\(1,\)'):
            check_topk(cfg, context)


def test_a_classifier_may_start_from_nothing():
    """A detector should not. Bug: a pre-training is told to begin with pre-trained weights."""
    model = {'backbone': {'type': 'swinv2_mm.SwinTransformerV2'}}
    assert not starts_from_noise(Config({'default_scope': 'mmpretrain', 'model': model}))
    assert starts_from_noise(Config({'default_scope': 'mmdet', 'model': model}))
