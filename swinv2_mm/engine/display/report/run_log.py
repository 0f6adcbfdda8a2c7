"""The log of a run, read back from the JSON lines that mmengine writes."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from swinv2_mm.errors import UserError

# Metrics that judge a validation, without their prefix (coco/), the most important first; higher is better for all.
MAIN = ('bbox_mAP', 'segm_mAP', 'mIoU', 'mAP', 'mDice', 'mFscore', 'top1')
METRICS = (*MAIN, 'bbox_mAP_50', 'segm_mAP_50', 'mAcc', 'aAcc', 'top5')
_NO_METRICS = ('step', 'iter', 'epoch', 'iteration', 'time', 'data_time', 'memory')


@dataclass
class Run:
    """The log of a run, named by its work dir, and of its continuations by ``--resume``."""

    name: str
    train: list[dict]  # by iteration
    val: list[dict]  # each with the `iteration` that it followed
    resumed: list[int]  # the first iteration of each continuation
    epoch_length: float | None  # in iterations, if the log shows it


def read_run(work_dir: str | Path) -> Run:
    """Read the log of a run. From its first iteration on, a later log replaces an earlier one: resuming repeats some.

    Raises:
        UserError: The folder holds no such log.
    """
    train: list[dict] = []
    val: list[dict] = []
    resumed = []
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        records = [*_records(path)]
        begin = next((record['iter'] for record in records if 'iter' in record), None)
        if begin is None:
            continue
        train = [record for record in train if record['iter'] < begin]
        val = [record for record in val if record['after'] < begin]
        resumed += [begin] if train else []
        after = 0
        for record in records:
            if 'iter' in record:
                train.append(record)
                after = record['iter']
            elif metrics_of(record):
                val.append(dict(record, after=after, last_epoch=train[-1].get('epoch') if after else None))
    if not train:
        hint = 'name a work dir, as in work_dirs/<config>' if Path(work_dir).is_dir() else 'it does not exist'
        raise UserError(f'{work_dir} holds no log of a training: {hint}.')
    length = _epoch_length(train)
    for record in val:
        record['iteration'] = _iteration(record, length)
    return Run(Path(work_dir).resolve().name, train, val, [begin for begin in resumed if begin > 0], length)


def metrics_of(record: dict[str, Any]) -> dict[str, float]:
    """The known metrics of a validation, by their short names; the first six if none is known."""
    numbers: dict[str, Any] = {
        name.rpartition('/')[2]: value
        for name, value in record.items()
        if name not in _NO_METRICS and isinstance(value, int | float | np.number)
    }
    return {name: numbers[name] for name in METRICS if name in numbers} or dict([*numbers.items()][:6])


def _records(path: Path) -> Iterator[dict]:
    """The lines of a log, without a line that is being written or was cut off when the run was killed."""
    for line in path.read_text(errors='replace').splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _epoch_length(train: Sequence[dict]) -> float | None:
    """Iterations of an epoch: those between the first records of two epochs, which are at the same place in both."""
    first: dict[int, int] = {}
    for record in train:
        if 'epoch' in record:
            first.setdefault(record['epoch'], record['iter'])
    lengths = [(i - j) / (e - f) for (f, j), (e, i) in pairwise(first.items()) if e > f]
    return median(lengths) if lengths else None


def _iteration(record: dict, epoch_length: float | None) -> int:
    """The iteration before a validation: mmengine counts in iterations or in epochs, and does not log which."""
    if record['step'] >= record['after']:
        return record['step']
    if epoch_length and record['step'] == record['last_epoch']:
        return round(record['step'] * epoch_length)
    return record['after']


def series(records: Sequence[dict], name: str, x: str = 'iter') -> tuple[np.ndarray, np.ndarray]:
    pairs = [(record[x], record[name]) for record in records if isinstance(record.get(name), int | float)]
    return np.array([i for i, _ in pairs], float), np.array([value for _, value in pairs], float)


def validations(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    records = [metrics_of(record) | {'iteration': record['iteration']} for record in run.val]
    names = dict.fromkeys(name for record in records for name in record if name != 'iteration')
    return {name: series(records, name, 'iteration') for name in names}
