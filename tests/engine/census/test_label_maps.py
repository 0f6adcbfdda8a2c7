"""Semantic maps that teach nothing, or other classes, are refused before a run; the shares are those of the pixels."""

import cv2
import numpy as np
import pytest
from mmengine.registry import DefaultScope
from support.small_data import config_of, map_loader, write_maps

from swinv2_mm.engine.census.maps import counts_of
from swinv2_mm.engine.census.table import census_table
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.annotations import check_datasets
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
LABELS = np.zeros((40, 50), np.uint8)
LABELS[:10, :25] = 1  # an eighth


def check(folder, labels=LABELS, bad_data='stop', number=4, reading=None, **dataset):
    """The census of maps of these labels."""
    write_maps(folder, labels, number)
    context = Context(('train',), reading=reading or {})
    with DefaultScope.overwrite_default_scope('mmseg'):
        check_datasets(config_of(train_dataloader=map_loader(folder, **dataset), bad_data=bad_data), context)
    return context.censuses[0]


def values(*table):
    return np.array(table, np.uint8)[LABELS]


@pytest.mark.parametrize(
    ('labels', 'words'),
    [
        (values(255, 255), ['nothing can be learned from 4 maps', '100.0%', '255']),
        (values(0, 255), ['no label but 0', '12.5% of their pixels are 255', 'index of the class']),
        (values(0, 7), ['0.png has labels 7 in 250 pixels', '2 classes are 0 to 1']),
        (np.stack([LABELS] * 2 + [LABELS * 9], -1), ['0.png has 3 channels', 'picture of colours']),
        (LABELS.astype(np.uint16) * 300, ['0.png has values up to 300', '8 bits']),
    ],
    ids=['ignored', 'binary', 'label', 'colours', 'wide'],
)
def test_maps_that_teach_nothing_or_other_classes_are_refused(tmp_path, labels, words):
    """Bug: objects saved as 255 are ignored, and 300 becomes 44: a run that learns nothing, without a word."""
    with pytest.raises(UserError) as error:
        check(tmp_path, labels)
    assert all(word in str(error.value) for word in ['train_dataloader.dataset', *words]), str(error.value)


def test_reduce_zero_label_counts_as_the_data_set_does(tmp_path):
    """Bug: shares by the values of the files, although the data set ignores zero and shifts the others."""
    census = check(tmp_path, values(1, 2), reduce_zero_label=True)
    assert (census.pixels.counts, census.pixels.ignored) == ({0: 4 * 1750, 1: 4 * 250}, 0)
    with pytest.raises(UserError, match=r'87\.5% of their pixels'):
        check(tmp_path, values(0, 1), reduce_zero_label=True)


@pytest.mark.parametrize(('pipeline', 'own'), [(True, False), (False, True)])
def test_a_pipeline_that_reduces_labels_otherwise_is_no_damage(tmp_path, pipeline, own):
    """Bug: mmseg's assertion is told as a damaged file, with bad_data=skip as the remedy, which skips every sample."""
    loading = [{'type': 'LoadAnnotations', 'reduce_zero_label': pipeline}]
    words = rf'pipeline\.0\.reduce_zero_label={pipeline}, and train_dataloader\.dataset\.reduce_zero_label={own}'
    with pytest.raises(UserError, match=words):
        check(tmp_path, values(1, 2), pipeline=loading, reduce_zero_label=own)
    labels = values(1, 2) if pipeline else LABELS
    assert check(tmp_path, labels, pipeline=loading, reduce_zero_label=pipeline).pixels.read == 4


def test_a_missing_map_is_named_and_skipped_where_bad_data_are(tmp_path):
    """Bug: found when the sample is read, hours into the first epoch; or a run that skips all of its samples."""
    write_maps(tmp_path, LABELS)
    (tmp_path / 'map' / '3.png').unlink()
    context = Context(('train',))
    with DefaultScope.overwrite_default_scope('mmseg'):
        with pytest.raises(UserError, match=r'1 of 4 maps are missing, such as .*3.png'):
            check_datasets(config_of(train_dataloader=map_loader(tmp_path)), context)
        check_datasets(config_of(train_dataloader=map_loader(tmp_path), bad_data='skip'), context)
        assert '3.png; they are skipped' in context.censuses[0].warnings[0]
        [path.unlink() for path in (tmp_path / 'map').iterdir()]
        with pytest.raises(UserError, match='4 of 4 maps are missing'):
            check_datasets(config_of(train_dataloader=map_loader(tmp_path), bad_data='skip'), context)


def test_maps_that_no_transform_loads_may_be_missing(tmp_path):
    """Bug: predictions for a test set without ground truth are refused."""
    write_maps(tmp_path, LABELS)
    [path.unlink() for path in (tmp_path / 'map').iterdir()]
    context = Context(('test',))
    with DefaultScope.overwrite_default_scope('mmseg'):
        loader = map_loader(tmp_path, pipeline=[{'type': 'LoadImageFromFile'}])
        check_datasets(config_of(test_dataloader=loader, test_evaluator=[]), context)
    assert context.censuses[0].pictures == 4 and context.censuses[0].pixels is None


def test_labels_of_any_type_are_counted(tmp_path):
    """Bug: pixels are counted for the type that MMSegmentation loads, and those of a loading of the user's are lost."""
    for kind in (np.uint8, np.int64):
        assert counts_of(np.array([[3, 3], [255, 0]], kind)) == {0: 1, 3: 2, 255: 1}


def test_a_class_that_never_occurs_is_named(tmp_path):
    """Bug: a class of the config that no map has; of maps that were not read, nothing is claimed."""
    census = check(tmp_path, LABELS, classes=('ground', 'leaf', 'root'))
    assert census.warnings == [f'train_dataloader.dataset: {tmp_path}/map: no pixel of root; this cannot be learned.']
    (warning,) = check(tmp_path, np.zeros_like(LABELS), reading={'most': 2}).warnings
    assert 'no pixel of leaf in the 2 maps read' in warning


def test_many_maps_are_sampled_from_the_first_to_the_last(tmp_path):
    """Bug: only the first maps are read, which are all of one video; or a division by zero for one map."""
    write_maps(tmp_path, LABELS, 9)
    cv2.imwrite(str(tmp_path / 'map' / '8.png'), np.ones_like(LABELS))
    context = Context(('train',), reading={'most': 3})
    with DefaultScope.overwrite_default_scope('mmseg'):
        check_datasets(config_of(train_dataloader=map_loader(tmp_path)), context)
    pixels = context.censuses[0].pixels
    assert (pixels.read, pixels.all_read, pixels.counts) == (3, False, {0: 2 * 1750, 1: 2 * 250 + 2000})
    assert check(tmp_path / 'one', number=1, reading={'most': 1}).pixels.all_read


def test_the_table_shows_the_rarest_classes_and_what_is_ignored(tmp_path):
    """Bug: 150 lines on the screen, or the frequent classes, in which nothing is wrong."""
    classes = tuple(f'class{label}' for label in range(150))
    labels = (np.arange(40 * 50) % 130).astype(np.uint8).reshape(40, 50)
    labels[0] = 255
    census = check(tmp_path, labels, classes=classes)
    table = census_table([census])
    assert 'class149' in table and 'class7 ' not in table and '… and 126 more frequent ones' in table
    assert '(ignored)' in table and '2.50%' in table and 'class7 ' in census_table([census], whole=True)
