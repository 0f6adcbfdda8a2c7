"""Batches that a model does not take: one picture for a BatchNorm, pictures of several sizes for MMSegmentation."""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS

from swinv2_mm.engine.census.sizes import varied_samples
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.meta_forward import SIDE, norm_without_statistics
from swinv2_mm.engine.config.batches import input_size, last_batch, pictures_of
from swinv2_mm.engine.config.distributed import number_of_processes
from swinv2_mm.engine.config.parts import nested
from swinv2_mm.errors import UserError


def check_batches(cfg: Config, context: Context) -> None:
    """Check that a training has batches, and none of one picture if a BatchNorm behind the backbone needs two."""
    if 'train' not in context.splits:
        return
    loader, processes = cfg.train_dataloader, number_of_processes(cfg.get('launcher', 'none'))
    most = None if cfg.train_cfg.get('by_epoch') else cfg.train_cfg.get('max_iters')
    pictures, size = _pictures(cfg, context, 'train'), loader.get('batch_size', 1)

    def last(**changes: Any) -> int | None:
        return last_batch(loader | changes, pictures, processes, most)

    per_process = f' in each of {processes} processes' if processes > 1 else ''
    told = f'train_dataloader: {pictures} picture{"s" * (pictures != 1)} in batches of {size}{per_process}'
    drop_last = f'train_dataloader{".batch_sampler" if loader.get("batch_sampler") else ""}.drop_last'
    if last() == 0:
        raise UserError(
            f'{told}, of which {drop_last}=True leaves none to train on. Pass --cfg-options {drop_last}=False, or a '
            'smaller train_dataloader.batch_size.'
        )
    if last() != 1 or (processes > 1 and cfg.get('sync_bn')):
        return
    norm = norm_without_statistics(context.model, input_size(cfg) or (SIDE, SIDE), processes)
    if norm is None:
        return
    remedies = [f'train_dataloader.batch_size={other}' for other in (size + 1, size - 1, size + 2) if other > 1]
    remedies = [remedy for remedy in remedies if last(batch_size=int(remedy.partition('=')[2])) not in (0, 1)][:1]
    if 1 < size <= -(-(pictures or 0) // processes):
        remedies.insert(0, f'{drop_last}=True (each epoch then leaves out a picture{per_process})')
    if not remedies:
        head = f'model.{norm.partition(".")[0]}.norm_cfg'
        remedies = [f'{head}.type=GN {head}.num_groups=8, or train on more pictures']
    fault = f'{told} leave a last batch of one' if size > 1 else f'train_dataloader.batch_size=1{per_process}'
    raise UserError(
        f'{fault}: from one picture, the BatchNorm model.{norm} gets a single value per channel, and cannot train. '
        f'Pass --cfg-options {", or ".join(remedies)}.'
    )


def check_picture_sizes(cfg: Config, context: Context) -> None:
    """Check that MMSegmentation can stack the pictures of a batch, which it does not pad to the largest by itself.

    Two pictures count that its data preprocessor takes alone and not together, so that no transform needs imitation.
    """
    model = cfg.model.get('module') or cfg.model  # inside of test-time augmentation
    config, key = model.get('data_preprocessor'), 'model.data_preprocessor'
    if config is None:
        config, key = cfg.get('data_preprocessor'), 'data_preprocessor'
    if str((config or {}).get('type')).split('.')[-1] != 'SegDataPreProcessor':
        return
    preprocessor = MODELS.build(deepcopy(config))
    size, divisor = preprocessor.size, preprocessor.size_divisor
    if 'train' in context.splits and (size is None) == (divisor is None):
        rows, columns = input_size(cfg) or (512, 512)
        remedy = f'"{key}.size=({rows},{columns})"' if size is None else f'{key}.size_divisor=None'
        raise UserError(
            f'{key}: a training needs either size, to which pictures are padded, or size_divisor, and this has '
            f'{"neither" if size is None else "both"}. Pass --cfg-options {remedy}.'
        )
    for split in context.splits:
        loader, training = cfg[f'{split}_dataloader'], split == 'train'
        if training and divisor is not None:
            continue  # padded to the largest
        pictures = _pictures(cfg, context, split)
        share = -(-(pictures or 0) // number_of_processes(cfg.get('launcher', 'none')))
        wrappers = [part for _, part in nested(loader.dataset, '') if isinstance(part, dict) and 'dataset' in part]
        mixed = any('pipeline' in part for part in wrappers)  # what leaves the data set is not what the model gets
        if mixed or min(share, loader.get('batch_size', 1)) < 2:
            continue
        different = _not_stacked(preprocessor, _samples(context, split), training)
        if not different:
            continue
        told = ' and '.join(f'{rows}x{columns} ({path})' for path, (rows, columns) in different)
        remedy = f'Pass --cfg-options {split}_dataloader.batch_size=1.'
        if training:
            rows, columns = size
            remedy = (
                f"Add dict(type='RandomCrop', crop_size=({rows}, {columns})) to the pipeline, or pad batches to their "
                f'largest picture: --cfg-options {key}.size=None {key}.size_divisor=32.'
            )
        raise UserError(
            f'{split}_dataloader.batch_size={loader.batch_size}: pictures of several sizes leave the pipeline, such as '
            f'{told}, and MMSegmentation does not make a batch of them. {remedy}'
        )


def _pictures(cfg: Config, context: Context, split: str) -> int | None:
    """Samples in an epoch of a split, None if unknown."""
    lengths = {key: len(dataset.data_list) for key, dataset in context.datasets.items()}
    return pictures_of(cfg[f'{split}_dataloader'].dataset, f'{split}_dataloader.dataset', lengths)


def _samples(context: Context, split: str) -> Iterator[tuple[str, dict]]:
    """Some samples of the data sets of a split, with their paths."""
    for key, dataset in context.datasets.items():
        if key.startswith(f'{split}_'):
            yield from varied_samples(dataset)


def _not_stacked(
    preprocessor: Any, samples: Iterable[tuple[str, dict]], training: bool
) -> list[tuple[str, tuple[int, int]]]:
    """Paths and sizes of two pictures that pass alone and not together; empty if there are none."""

    def passes(*batch: dict) -> bool:
        try:
            preprocessor(pseudo_collate(deepcopy(batch)), training)
        except Exception:
            return False
        return True

    first: tuple[str, dict] | None = None
    for path, sample in samples:
        sample = {name: value[0] if isinstance(value, list) else value for name, value in sample.items()}
        if first is None:
            first = path, sample
            if not passes(sample):
                return []
        shapes = [tuple(one['inputs'].shape[-2:]) for one in (first[1], sample)]
        if shapes[0] != shapes[1] and passes(sample) and not passes(first[1], sample):
            return [(first[0], shapes[0]), (path, shapes[1])]
    return []
