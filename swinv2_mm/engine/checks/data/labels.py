"""Check data sets whose pictures have one label each: MMPretrain numbers the folders of a split alphabetically."""

import os
from collections.abc import Mapping

from mmengine.config import Config
from mmengine.dataset import BaseDataset

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.config.parts import each
from swinv2_mm.errors import UserError, listed


def check_number_of_folders(dataset: BaseDataset, key: str) -> None:
    """Check that a data set, not loaded, has a folder for each class, where folders tell the classes.

    Raises:
        UserError: It has more or fewer; the message tells what to set for data of one's own.
    """
    classes, folder = dataset.metainfo.get('classes') or (), str(dataset.data_prefix.get('img_path') or '')
    if dataset.ann_file or not classes or not getattr(dataset, 'with_label', False) or not os.path.isdir(folder):
        return
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if len(names) != len(classes):
        raise UserError(
            f'{key}: {folder} has {len(names)} folders ({listed(names)}), and the config {len(classes)} classes. For '
            f'classes of your own set {key}.classes, and that of every data set, to their names in the order of the '
            f'folders, and model.head.num_classes={len(names)} and data_preprocessor.num_classes={len(names)}.'
        )


def check_folders_alike(datasets: Mapping[str, BaseDataset]) -> None:
    """Check that the data sets of a run, by their keys, give the same folder the same label.

    Raises:
        UserError: A folder is missing in one, so that it numbers the others differently.
    """
    numbered = {key: numbers for key, dataset in datasets.items() if (numbers := getattr(dataset, 'folder_to_idx', None))}
    (first, expected), *others = [*numbered.items()] or [('', {})]
    for key, numbers in others:
        odd = sorted(expected.keys() ^ numbers.keys())
        if odd:
            there, absent = (first, key) if odd[0] in expected else (key, first)
            raise UserError(
                f'{there} has a folder {odd[0]!r}, and {absent} has none: labels are the places of the folders in the '
                'alphabet, so those behind it would mean other classes. Give both the same folders; one without '
                'pictures may be empty.'
            )


def check_topk(cfg: Config, context: Context) -> None:
    """Check that MMPretrain's accuracy does not ask for more guesses than there are classes.

    Raises:
        UserError: It does; the first validation would fail.
    """
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for split in context.splits:
        classes = [len(names) for key, names in context.classes.items() if key.startswith(f'{split}_')]
        for key, metric in each(cfg.get(f'{split}_evaluator') if split != 'train' else None, f'{split}_evaluator'):
            guesses = metric.get('topk', 1) if str(metric.get('type')).split('.')[-1] == 'Accuracy' else 1
            most = max(guesses) if isinstance(guesses, list | tuple) else guesses
            if classes and most > min(classes):
                raise UserError(
                    f'{key}.topk={guesses} counts the best {most} guesses of {min(classes)} classes. Pass --cfg-options '
                    f"'{key}.topk=(1,)'"
                )
