"""Check data sets before a run: their classes, their files, and whether anything is left to learn from.

MMDetection looks up the classes in the file by name and numbers those that it finds in the order of the file. A class
that is missing, or elsewhere, silently shifts the labels behind it; if none is found, nothing is learned.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from swinv2_mm.engine.census.coco import check_evaluated, check_masks, read_coco
from swinv2_mm.engine.census.taking import find_loading, load, take_census
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import SEE_MORE, check_arguments, find_class, with_key
from swinv2_mm.engine.checks.data.paths import on_disk
from swinv2_mm.engine.config.form import policy_of
from swinv2_mm.engine.config.parts import datasets_of, each, is_local, nested
from swinv2_mm.errors import UserError, listed


def check_datasets(cfg: Config, context: Context) -> None:
    """Build each data set of the frameworks without its pipeline, note its classes, and take its census."""
    orders: dict[str, list[str]] = {}  # of the classes of the config, in each COCO file
    for split in context.splits:
        for key, config in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            dataset = _build(config, key)
            if dataset is not None:
                _check_dataset(cfg, context, key, config, dataset, orders)
    for split in context.splits:
        for key, path in _of_metrics(cfg, split):
            datasets = [dataset for key, dataset in context.datasets.items() if key.startswith(f'{split}_')]
            if datasets and path not in {_resolved(dataset.ann_file) for dataset in datasets}:
                _check_metric(key, path, datasets, orders)
    _check_orders(orders, context)
    if 'language_model' not in (cfg.get('model') or {}):  # which reads the names instead of numbering them
        _compare_classes(context)
    _warn_of_overlap(context)


def _build(config: dict, key: str) -> BaseDataset | None:
    """A data set of the frameworks or ours, not loaded; None for a foreign class, which may read data when built."""
    kind = find_class(config, key, DATASETS)
    own = isinstance(kind, type) and issubclass(kind, BaseDataset)
    if not own or kind.__module__.split('.')[0] not in ('mmengine', 'mmdet', 'mmseg', 'swinv2_mm'):
        check_arguments(config, key, DATASETS)
        return None
    with with_key(config, key):
        return DATASETS.build(dict(deepcopy(config), lazy_init=True))


def _check_dataset(
    cfg: Config, context: Context, key: str, config: dict, dataset: BaseDataset, orders: dict[str, list[str]]
) -> None:
    """Check one data set as far as its data are on this machine."""
    classes = dataset.metainfo.get('classes')
    if isinstance(classes, str):
        raise UserError(f'{key}.metainfo.classes={classes!r} must be a list of names; for one class, ({classes!r},).')
    if classes:
        context.classes[key] = classes
    paths = [dataset.ann_file] if dataset.ann_file else [path for path in dataset.data_prefix.values() if path]
    unchecked = policy_of(cfg) is None
    if unchecked or not on_disk(config) or not all(is_local(path) and Path(path).exists() for path in paths):
        return
    _check_reduce_zero_label(dataset, config, key)
    content, path, where = None, dataset.ann_file, f'{key}: {dataset.ann_file}'
    split = key.partition('_dataloader')[0]
    if _reads_coco(type(dataset)) and path and classes:
        content = read_coco(Path(path), where)
        orders[where] = check_names(content, classes, where, key)
        measured = [metric for _, metric in _metrics(cfg, split) if 'segm' in (metric.get('metric') or ())]
        if find_loading(config, 'with_mask') or measured:
            check_masks(content, where, complete=split == 'train' and policy_of(cfg) == 'stop')
        if _resolved(path) in [metric for _, metric in _of_metrics(cfg, split)]:
            check_evaluated(content, where, path)
    try:
        load(dataset, content)
    except UserError as error:
        raise UserError(f'{key}: {error}') from error
    except Exception as error:  # whatever the code of a framework raises
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise UserError(f'{key}: {", ".join(map(str, paths))} cannot be read: {reason}. {SEE_MORE}') from error
    context.datasets[key] = dataset
    if split != 'train' and content is not None and not content['annotations']:
        if split == 'val':
            raise UserError(
                f'{where} has no annotations, so nothing can be measured. Set val_cfg, val_dataloader and '
                'val_evaluator to None to train without validation.'
            )
        return  # a test set without ground truth
    head = (cfg.get('model') or {}).get('decode_head') or {}
    head = head[-1] if isinstance(head, list | tuple) else head
    context.censuses.append(
        take_census(
            dataset,
            key,
            config,
            content,
            tolerant=policy_of(cfg) == 'skip' and split == 'train',
            ignore_index=head.get('ignore_index', 255),
            num_classes=head.get('num_classes') or 0,
            **context.reading,
        )
    )


def _check_reduce_zero_label(dataset: BaseDataset, config: dict, key: str) -> None:
    """Refuse a pipeline of MMSegmentation that treats label 0 in another way than its data set."""
    own = getattr(dataset, 'reduce_zero_label', None)
    for place, part in nested(config.get('pipeline'), f'{key}.pipeline'):
        other = part.get('reduce_zero_label') if isinstance(part, dict) else None
        if None not in (own, other) and own != other:
            raise UserError(
                f'{place}.reduce_zero_label={other}, and {key}.reduce_zero_label={own} (the default of the class, if '
                'the config does not set it). Leave it out of the pipeline, which then follows the data set; there, '
                'True ignores label 0, and 1 becomes the first class.'
            )


def _reads_coco(kind: Any) -> bool:
    if not kind.__module__.startswith('mmdet'):
        return False
    from mmdet.datasets import CocoDataset as Coco

    return issubclass(kind, Coco) and kind.load_data_list is Coco.load_data_list and kind.COCOAPI is Coco.COCOAPI


def _metrics(cfg: Config, split: str) -> Iterator[tuple[str, dict]]:
    """The metrics of a split, by their keys."""
    if split != 'train':
        metrics = each(cfg.get(f'{split}_evaluator'), f'{split}_evaluator')
        yield from ((key, metric) for key, metric in metrics if isinstance(metric, dict))


def _of_metrics(cfg: Config, split: str) -> Iterator[tuple[str, Path]]:
    """The COCO files that metrics compare with."""
    for key, metric in _metrics(cfg, split):
        path, name = metric.get('ann_file'), str(metric.get('type')).split('.')[-1]
        if name == 'CocoMetric' and isinstance(path, str) and is_local(path) and Path(path).exists():
            yield f'{key}.ann_file', _resolved(path)


def _resolved(path: str) -> Path:
    return Path(path).resolve()


def _check_metric(key: str, path: Path, datasets: Sequence[BaseDataset], orders: dict[str, list[str]]) -> None:
    """Check a metric that compares with another file than that of the data set."""
    where = f'{key}: {path}'
    content = read_coco(path, where)
    check_evaluated(content, where, str(path))
    orders[where] = check_names(content, datasets[0].metainfo['classes'], where, key)
    ids = {image['id'] for image in content['images']}
    unknown = [entry for dataset in datasets for entry in dataset.data_list if entry.get('img_id') not in ids]
    if unknown:
        raise UserError(
            f'{where} lacks {len(unknown)} images that the data set has, such as {unknown[0].get("img_path")} (id '
            f'{unknown[0].get("img_id")!r}); the metric would compare with other images. Set {key} to the file of the '
            f'data set, {datasets[0].ann_file}.'
        )


def check_names(content: dict, classes: Sequence[str], where: str, key: str) -> list[str]:
    """Check that a COCO file has the classes of a config, each once; their order is returned.

    Raises:
        UserError: A class is missing, or is in the file twice.
    """
    names = [category['name'] for category in content['categories']]
    known = [name for name in names if name in classes]
    twice = next((name for name, count in Counter(known).items() if count > 1), None)
    if twice is not None:
        used = Counter(annotation['category_id'] for annotation in content['annotations'])
        numbers = [category['id'] for category in content['categories'] if category['name'] == twice]
        told = ' and '.join(f'{number!r} ({used[number]} objects)' for number in numbers)
        raise UserError(
            f'{where}: category {twice!r} is there {len(numbers)} times, with the ids {told}; each would become a '
            'class of its own. Take the one without objects out of "categories" (some tools write a root category), or '
            'give the annotations of all the same id.'
        )
    missing = [name for name in classes if name not in names]
    if not missing:
        return known
    fault = f'{listed(missing)} is not in it; this would shift the labels of the classes behind'
    if not known:
        fault = f'none of the classes of the config ({listed(classes)}) is in it'
    raise UserError(f'{where}: {fault}. {_set_classes(names)}')


def _set_classes(names: Sequence[str]) -> str:
    return (
        f'Set metainfo.classes of every data set to names of this file, in its order: {listed(names, 20)}; and '
        'num_classes of the heads to their number.'
    )


def _check_orders(orders: dict[str, list[str]], context: Context) -> None:
    """Refuse files that have the classes in another order than the config: labels follow the file."""
    for where, known in orders.items():
        key = where.partition(': ')[0]
        classes = context.classes.get(key) or next(iter(context.classes.values()))
        if known == list(classes):
            continue
        fault = (
            f'{where}: it has the classes in another order ({listed(known)}) than the config ({listed(classes)}); '
            'labels follow the file, so their names would be wrong.'
        )
        if len({tuple(order) for order in orders.values()}) == 1:
            raise UserError(f'{fault} {_set_classes(known)}')
        path = where.partition(': ')[2]
        raise UserError(
            f'{fault} The files of this run differ, so bring "categories" of this one into the order of the config: '
            f'{reordering(path, classes)}'
        )


def reordering(path: str, classes: Sequence[str]) -> str:
    """A command that puts the categories of a COCO file into the order of these classes."""
    return (
        f'python -c "import json; p = {str(path)!r}; d = json.load(open(p)); n = {list(classes)}; '
        "d['categories'].sort(key=lambda c: n.index(c['name']) if c['name'] in n else len(n)); "
        "json.dump(d, open(p, 'w'))\""
    )


def _compare_classes(context: Context) -> None:
    """Refuse data sets of one run that number the same classes differently; other names may be a translation."""
    (first, expected), *others = [*context.classes.items()] or [('', ())]
    for key, names in others:
        moved = moved_class(names, expected)
        if moved is not None:
            raise UserError(
                f'{key}.metainfo.classes differs from that of {first}: {moved!r} is label {[*names].index(moved)} in '
                f'one and {[*expected].index(moved)} in the other. Set the same classes in the same order in both.'
            )
        if len(names) == len(expected) and [*names] != [*expected]:
            context.warnings.append(f'{first} calls its classes {listed(expected)}; {key} calls them {listed(names)}.')


def moved_class(names: Sequence[str], others: Sequence[str]) -> str | None:
    """A class that has another label in one list of classes than in the other."""
    if [*names] == [*others]:  # in which a name may be there twice
        return None
    labels = {name: label for label, name in enumerate(others)}
    return next((name for label, name in enumerate(names) if labels.get(name, label) != label), None)


def _warn_of_overlap(context: Context) -> None:
    """Warn of a validation on the pictures of the training."""
    paths = {key: {entry.get('img_path') for entry in data.data_list} for key, data in context.datasets.items()}
    trained = {path for key, found in paths.items() if key.startswith('train_') for path in found}
    for census in context.censuses:
        both = paths[census.key] & trained - {None}
        if both and census.split != 'train':
            census.warnings.append(
                f'{census.key}: {len(both)} of its {len(paths[census.key])} pictures are trained on, too; its metrics '
                'say how well they are remembered.'
            )
