"""What a run will see of its data: pictures, objects or pixels per class, and what is left out and why."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from swinv2_mm.engine.census.coco import REASONS, mask_reason
from swinv2_mm.engine.census.maps import Pixels
from swinv2_mm.errors import UserError, listed


@dataclass
class Census:
    """The counts of one data set, after its own filters."""

    key: str  # of the config
    source: str  # the annotation file, or the folder of the maps
    classes: Sequence[str]
    pictures: int = 0
    pictures_left_out: int = 0  # by filter_cfg
    with_objects: int = 0
    objects: Counter[int] | None = None  # by label; None for data without objects
    whole_pictures: bool = False  # the objects are pictures that have a label each
    left_out: Counter[str] = field(default_factory=Counter)  # objects, by reason
    pixels: Pixels | None = None  # of semantic maps
    warnings: list[str] = field(default_factory=list)

    @property
    def split(self) -> str:
        """``'train'``, ``'val'`` or ``'test'``."""
        return self.key.partition('_dataloader')[0]

    @property
    def name(self) -> str:
        """The key without what all data sets have in common."""
        return self.key.replace('_dataloader.dataset', '', 1).replace('.dataset', '')

    def absent(self) -> list[str]:
        """The classes that do not occur."""
        counts = self.objects if self.pixels is None else self.pixels.counts
        return [name for label, name in enumerate(self.classes) if counts is not None and not counts[label]]


def count_objects(census: Census, entries: Sequence[dict], masks: dict | None) -> None:
    """Count the pictures and objects of a data set's ``data_list``; ``masks`` is the transform that loads masks."""
    census.pictures = len(entries)
    labels = [entry.get('gt_label') for entry in entries]
    if labels and all(isinstance(label, int | np.integer) for label in labels):
        _count_pictures(census, labels)
    if not entries or not all('instances' in entry for entry in entries):
        return
    counts: Counter[int] = Counter()
    for entry in entries:
        labels = [
            instance.get('bbox_label')
            for instance in entry['instances']
            if not instance.get('ignore_flag') and (masks is None or not mask_reason(instance.get('mask'), masks))
        ]
        counts.update(labels)
        census.with_objects += bool(labels)
    census.objects = counts


def _count_pictures(census: Census, labels: Sequence[int]) -> None:
    """Count the pictures of each class.

    Raises:
        UserError: A label is none of the classes.
    """
    odd = next((label for label in labels if not 0 <= label < len(census.classes)), None) if census.classes else None
    if odd is not None:
        raise UserError(
            f'{census.key}: {census.source}: label {odd} is none of its {len(census.classes)} classes, counted from 0. '
            f'Correct the labels, or set {census.key}.classes to all names.'
        )
    census.objects, census.with_objects, census.whole_pictures = Counter(labels), len(labels), True


def check_census(census: Census) -> None:
    """Refuse data from which nothing can be learned, or with which nothing can be measured; note warnings.

    Raises:
        UserError: No picture or no object is left.
    """
    where = f'{census.key}: {census.source}'
    if not census.pictures:
        out = census.pictures_left_out
        found = 'it has none'
        if out:
            found = (
                f'{census.key}.filter_cfg leaves out all of its {out}: make min_size smaller, or correct the classes'
            )
        reasons = f' Its objects are not used: {_reasons(census)}. {_remedies(census)}' if census.left_out else ''
        raise UserError(f'{where}: no picture is left; {found}.{reasons}')
    if census.objects is not None and not census.objects.total() and census.left_out:
        raise UserError(
            f'{where}: not one of its {census.left_out.total()} objects is used: {_reasons(census)}. '
            f'{_remedies(census)}'
        )
    absent = census.absent()
    if absent and len(absent) < len(census.classes):
        effect = 'learned' if census.split == 'train' else 'measured'
        part = '' if census.pixels is None or census.pixels.all_read else f' in the {census.pixels.read} maps read'
        thing = 'picture' if census.whole_pictures else 'object' if census.pixels is None else 'pixel'
        census.warnings.append(f'{where}: no {thing} of {listed(absent, 10)}{part}; this cannot be {effect}.')
    faults = sum(count for reason, count in census.left_out.items() if reason not in ('crowd', 'another class'))
    every = census.left_out.total() + (census.objects.total() if census.objects else 0)
    if faults > 0.05 * every:
        census.warnings.append(
            f'{where}: {census.left_out.total()} of {every} objects are left out: {_reasons(census)}. '
            f'{_remedies(census)}'
        )


def _reasons(census: Census) -> str:
    return ', '.join(f'{reason} ({count})' for reason, count in census.left_out.most_common())


def _remedies(census: Census) -> str:
    text = '; '.join(REASONS[reason] for reason, _ in census.left_out.most_common())
    return f'{text[:1].upper()}{text[1:]}.' if text else ''


def missing_files(entries: Sequence[dict], name: str) -> list[str]:
    """The files that ``entries[name]`` names and that do not exist; each folder is listed once."""
    folders: dict[str, set[str]] = {}
    missing = []
    for entry in entries:
        path = entry.get(name)
        if not isinstance(path, str):
            continue
        folder, file = os.path.split(path)
        if folder not in folders:
            folders[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if file not in folders[folder] and not Path(path).exists():  # a name with other letters, on some systems
            missing.append(path)
    return missing


def check_files(census: Census, entries: Sequence[dict], name: str, tolerant: bool) -> None:
    """Refuse missing images or maps, which ``entries[name]`` names; a ``tolerant`` run skips them, but not all.

    Raises:
        UserError: Files are missing.
    """
    kind = 'images' if name == 'img_path' else 'maps'
    missing = missing_files(entries, name)
    if not missing:
        return
    text = f'{census.key}: {len(missing)} of {len(entries)} {kind} are missing, such as {missing[0]}'
    if tolerant and len(missing) < len(entries):
        census.warnings.append(f'{text}; they are skipped.')
        return
    skip = ', or train without them: --cfg-options bad_data=skip' if len(missing) < len(entries) else ''
    keys = 'data_root and data_prefix' + (', img_suffix and seg_map_suffix' if census.pixels else '')
    raise UserError(f'{text} (named by {census.source}). Correct {keys} of {census.key}, or the names{skip}.')
