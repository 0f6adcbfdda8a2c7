"""COCO files that teach nothing, or something wrong, are refused before a run, by the file and the entry."""

import json
from functools import partial

import pytest
from mmengine.registry import DefaultScope
from support.small_data import CLASSES, coco_loader, config_of, of_each, write_coco

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.annotations import check_datasets
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')


def census_of(split='train', **parts):
    """The censuses of a config with these parts."""
    context = Context((split,))
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_datasets(config_of(**parts), context)
    return context


def check(folder, edit=None, split='train', metric=None, **dataset):
    """What the checks find in a small file after an edit."""
    path = write_coco(folder, edit)
    evaluator = {'type': 'CocoMetric', 'ann_file': str(path), 'metric': metric or ['bbox']}
    parts = {f'{split}_dataloader': coco_loader(folder, **dataset), f'{split}_evaluator': evaluator}
    return census_of(split, **parts)


def update(part, index, **values):
    return lambda content: content[part][index].update(values)


def points(annotation):
    numbers = annotation['segmentation'][0]
    annotation['segmentation'] = [numbers[i : i + 2] for i in range(0, len(numbers), 2)]


def same_images(content):
    """Two exports of two pictures each, joined without new ids."""
    for image in content['images'][2:]:
        image['id'] -= 2
    for annotation in content['annotations']:
        annotation['image_id'] = (annotation['image_id'] - 1) % 2 + 1


@pytest.mark.parametrize(
    ('edit', 'words'),
    [
        (of_each(lambda entry: entry.update(iscrowd=1)), ['not one of its 8 objects', 'crowd (8)', 'iscrowd=0']),
        (of_each(lambda entry: entry.update(area=0)), ['not one of its 8 objects', 'area 0 (8)', 'Write the area']),
        (of_each(lambda entry: entry.update(bbox=[0.1, 0.1, 0.3, 0.3])), ['narrower than a pixel (8)', 'shares']),
        (of_each(lambda entry: entry.update(bbox=[900, 900, 20, 20])), ['outside of the picture (8)']),
        (of_each(lambda entry: entry.update(ignore=1)), ['marked ignore (8)']),
        (of_each(lambda entry: entry.update(segmentation=[[1, 2, 3, 4]])), ['mask without three corners (8)']),
        (of_each(points), ['segmentation of annotations[0]', 'points', '[[x1, y1']),
        (of_each(lambda entry: entry.update(segmentation=[[[0, 0], [4, 0], [4, 4]]])), ['points', '[[x1, y1']),
        (of_each(lambda entry: entry.update(segmentation=entry['segmentation'][0])), ['one flat list of numbers']),
        (update('annotations', 3, segmentation=[]), ['annotations[3] has no segmentation', 'with_mask=False']),
        (of_each(lambda entry: entry.update(image_id=str(entry['image_id']))), ["'1'", 'another type', 'quotes']),
        (of_each(lambda entry: entry.update(category_id=str(entry['category_id']))), ['category_id', 'another type']),
        (of_each(lambda entry: entry.update(image_id=77)), ['image_id of no annotation']),
        (same_images, ['2 of 4 images', 'id of another', '0001.png', '0003.png', 'joined']),
        (update('annotations', 5, id=1), ['1 of 8 annotations have the id of another']),
        (update('categories', 1, id=1, name='nut'), ['categories have the id of another, such as 1 (bolt, nut)']),
        (update('annotations', 2, bbox=[1, None, 3, 4]), ['bbox of annotations[2] is [1, None, 3, 4]', 'four numbers']),
        (update('annotations', 2, area='12'), ["area of annotations[2] is '12'"]),
        (update('images', 1, height='64'), ["height of images[1] is '64'"]),
        (update('images', 1, file_name=None), ['file_name of images[1] is None']),
        (lambda content: content['annotations'][0].pop('area'), ['annotations[0] has no area']),
        (lambda content: content.update(annotations=[]), ['no picture is left', 'filter_cfg']),
        (update('images', 1, file_name='gone.png'), ['1 of 4 images are missing', 'gone.png', 'bad_data=skip']),
        (update('categories', 0, name='Bolt'), ['bolt is not in it', 'Bolt, nut']),
        (
            lambda content: content['categories'].insert(0, {'id': 9, 'name': 'bolt'}),
            ["'bolt'", '9 (0 objects)', '1 (4'],
        ),
        (lambda content: content['categories'].reverse(), ['another order (nut, bolt)', 'metainfo.classes of every']),
    ],
)
def test_files_that_teach_nothing_or_something_wrong_are_refused(tmp_path, edit, words):
    """Bug: a run that learns nothing, or labels of other classes, and ends with code 0; or a traceback in an epoch."""
    with pytest.raises(UserError) as error:
        check(tmp_path, edit, filter_cfg={'filter_empty_gt': 'segmentation' not in words[0], 'min_size': 1})
    missing = [word for word in ['coco.json', 'train_dataloader.dataset', *words] if word not in str(error.value)]
    assert not missing, str(error.value)


def test_masks_are_not_looked_at_where_none_are_trained_or_measured(tmp_path):
    """Bug: a detector without masks is refused for masks that it never reads; the metric 'segm' reads them alone."""
    assert check(tmp_path, of_each(points), masks=False).censuses[0].objects.total() == 8
    assert check(tmp_path, of_each(points), 'val', masks=False).censuses[0].objects.total() == 8
    with pytest.raises(UserError, match='points'):
        check(tmp_path, of_each(points), 'val', ['bbox', 'segm'], masks=False)


def test_an_annotation_with_the_id_0_is_refused_where_it_is_evaluated(tmp_path):
    """Bug: pycocotools counts a perfect box as missed, and the mAP is too low; training does not mind."""
    edit = update('annotations', 0, id=0)
    assert check(tmp_path, edit).censuses[0].objects.total() == 8
    with pytest.raises(UserError, match=r'annotations\[0\] has the id 0.*python -c') as error:
        check(tmp_path, edit, 'val')
    # The command that the message gives does what it says.
    code = str(error.value).partition('python -c "')[2].rpartition('"')[0]
    exec(code, {})
    assert [entry['id'] for entry in json.loads((tmp_path / 'coco.json').read_text())['annotations']] == [*range(1, 9)]


def test_files_in_different_orders_get_a_command_that_reorders_one(tmp_path):
    """Bug: the remedy renames the classes of one data set, and label 0 is bolt in training and nut in validation."""
    write_coco(tmp_path / 'a')
    write_coco(tmp_path / 'b', lambda content: content['categories'].reverse())
    parts = {'train_dataloader': coco_loader(tmp_path / 'a'), 'val_dataloader': coco_loader(tmp_path / 'b')}
    context = Context(('train', 'val'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        with pytest.raises(UserError, match=r'val_dataloader\.dataset.*another order.*python -c') as error:
            check_datasets(config_of(**parts, val_evaluator=[]), context)
        exec(str(error.value).partition('python -c "')[2].rpartition('"')[0], {})
        check_datasets(config_of(**parts, val_evaluator=[]), context)


def test_data_sets_that_number_the_same_classes_differently_are_refused(tmp_path):
    """Bug: each fits its own file, and label 0 is bolt in training and nut in validation."""
    write_coco(tmp_path / 'a')
    write_coco(tmp_path / 'b', lambda content: content['categories'].reverse())
    other = coco_loader(tmp_path / 'b', metainfo={'classes': CLASSES[::-1]})
    context = Context(('train', 'val'))
    parts = {'train_dataloader': coco_loader(tmp_path / 'a'), 'val_dataloader': other, 'val_evaluator': []}
    with (
        DefaultScope.overwrite_default_scope('mmdet'),
        pytest.raises(
            UserError, match=r"val_dataloader.dataset.metainfo.classes .*'nut' is label 0 in one and 1 in the other"
        ),
    ):
        check_datasets(config_of(**parts), context)


def test_data_sets_with_other_names_for_their_classes_are_warned_of(tmp_path):
    """Bug: people who validate on a data set that says "pedestrian" for "person" cannot train."""
    write_coco(tmp_path / 'a')
    write_coco(
        tmp_path / 'b',
        lambda content: [category.update(name=category['name'] * 2) for category in content['categories']],
    )
    other = coco_loader(tmp_path / 'b', metainfo={'classes': ('boltbolt', 'nutnut')})
    context = Context(('train', 'val'))
    parts = {'train_dataloader': coco_loader(tmp_path / 'a'), 'val_dataloader': other, 'val_evaluator': []}
    with DefaultScope.overwrite_default_scope('mmdet'):
        check_datasets(config_of(**parts), context)
    assert 'bolt, nut; val_dataloader.dataset calls them boltbolt, nutnut' in context.warnings[0]


def test_a_metric_with_the_file_of_other_images_is_refused(tmp_path):
    """Bug: after an epoch, "Results do not correspond to current coco set": val_evaluator.ann_file was inherited."""
    write_coco(tmp_path)
    other = write_coco(tmp_path / 'other', lambda content: content['images'].pop(0) and content.update(annotations=[]))
    parts = {'val_dataloader': coco_loader(tmp_path)}
    with pytest.raises(UserError, match=r'val_evaluator.ann_file: .*lacks 1 images.*0001.png'):
        census_of('val', **parts, val_evaluator={'type': 'CocoMetric', 'ann_file': str(other)})


def test_what_is_suspicious_is_counted_and_warned_of(tmp_path):
    """Bug: boxes as corners, a class without objects or stray annotations pass without a word; or stop a good run."""
    corners = of_each(lambda entry: entry['bbox'].__setitem__(slice(2, 4), [90, 90]))
    for edit, words in (
        (corners, '8 of 8 boxes reach beyond'),
        (of_each(partial(dict.update, category_id=1)), 'no object of nut; this cannot be learned'),
        (lambda content: content['annotations'].append(content['annotations'][0] | {'id': 9, 'image_id': 7}), '1 of 9'),
        (update('images', 1, file_name='0001.png'), 'listed more than once, such as 0001.png'),
    ):
        (census,) = check(tmp_path, edit).censuses
        assert any(words in warning for warning in census.warnings), census.warnings
    assert check(tmp_path).censuses[0].warnings == []


def test_a_validation_on_pictures_of_the_training_is_warned_of(tmp_path):
    """Bug: the metrics of a memory are taken for those of a detector."""
    for name in 'ab':
        write_coco(tmp_path / name)
    for name, words in ('a', ['4 of its 4 pictures are trained on, too']), ('b', []):
        context = Context(('train', 'val'))
        parts = {'train_dataloader': coco_loader(tmp_path / 'a'), 'val_dataloader': coco_loader(tmp_path / name)}
        with DefaultScope.overwrite_default_scope('mmdet'):
            check_datasets(config_of(**parts, val_evaluator=[]), context)
        said = [warning for census in context.censuses for warning in census.warnings]
        assert len(said) == len(words) and all(word in said[0] for word in words)


def test_nothing_is_read_where_bad_data_are_left_to_the_frameworks(tmp_path):
    """Bug: no way around the time that a huge file takes, or around a check that somebody disagrees with."""
    write_coco(tmp_path, of_each(lambda entry: entry.update(iscrowd=1)))
    context = census_of(train_dataloader=coco_loader(tmp_path), bad_data=None)
    assert not context.censuses and not context.datasets and context.classes == {'train_dataloader.dataset': CLASSES}


def test_a_test_set_without_ground_truth_passes(tmp_path):
    """Bug: COCO's image_info_test-dev2017.json, which has no list of annotations, is refused."""

    def edit(content):
        content.pop('annotations')

    context = check(tmp_path, edit, 'test')
    assert len(context.datasets['test_dataloader.dataset'].data_list) == 4 and not context.censuses
    with pytest.raises(UserError, match='has no annotations, so nothing can be measured'):
        check(tmp_path, edit, 'val')


def test_data_sets_in_wrappers_are_counted_each(tmp_path):
    """Bug: a census that sees no data behind RepeatDataset or ConcatDataset."""
    write_coco(tmp_path / 'a')
    write_coco(tmp_path / 'b', lambda content: content['annotations'][1].update(iscrowd=1))
    inner = [coco_loader(tmp_path / name)['dataset'] for name in 'ab']
    concat = {'type': 'ConcatDataset', 'datasets': inner}
    repeated = {'dataset': {'type': 'RepeatDataset', 'times': 3, 'dataset': concat}}
    first, second = census_of(train_dataloader=repeated).censuses
    assert first.key == 'train_dataloader.dataset.dataset.datasets.0' and [*first.objects.values()] == [4, 4]
    assert [second.objects[label] for label in range(2)] == [4, 3] and second.left_out == {'crowd': 1}


def test_the_counts_are_those_of_the_data_set_that_the_run_builds(tmp_path):
    """Bug: a census that counts by rules of its own: of random entries, what MMDetection loads must be the same."""
    import numpy as np
    from mmdet.registry import DATASETS
    from mmdet.utils import register_all_modules

    rng = np.random.default_rng(0)

    def spoil(annotation):
        for name, values in (
            ('area', [0, 100]),
            ('iscrowd', [0, 0, 1]),
            ('ignore', [0, 0, 0, 1]),
            ('category_id', [1, 2, 3, 9]),
            ('bbox', [[4, 8, 18, 22], [80, 0, 9, 9], [3, 3, 0.5, 9]]),
            ('segmentation', [[[1, 1, 9, 1, 9, 9]], [[1, 1, 9, 9]]]),
        ):
            annotation[name] = values[rng.integers(len(values))]

    def edit(content):
        content['categories'].insert(1, {'id': 3, 'name': 'washer'})
        of_each(spoil)(content)

    write_coco(tmp_path, edit, pictures=200)
    (census,) = census_of(train_dataloader=coco_loader(tmp_path)).censuses
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(coco_loader(tmp_path)['dataset'])
        samples = [dataset[index] for index in range(len(dataset))]
    labels = np.concatenate([sample['gt_bboxes_labels'][~sample['gt_ignore_flags']] for sample in samples])
    assert [census.objects[label] for label in range(len(CLASSES))] == np.bincount(labels, minlength=2).tolist()
    assert census.pictures == len(dataset) and len(labels) > 5
    assert census.left_out.total() + len(labels) == 400 and len(census.left_out) == 8
