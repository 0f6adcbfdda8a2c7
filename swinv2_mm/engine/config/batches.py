"""What a config says about its batches: how large their pictures are, and how many of them are in the last batch."""

from collections.abc import Mapping

from mmengine.config import Config

from swinv2_mm.engine.config.parts import each, nested


def input_size(cfg: Config) -> tuple[int, int] | None:
    """``(rows, columns)`` at the end of the training pipeline; the largest of several, None if it does not say."""
    fixed = (cfg.model.get('data_preprocessor') or {}).get('size')
    if fixed:
        return tuple(fixed)
    size = None
    for transform in (part for _, part in nested(cfg.get('train_dataloader'), '') if isinstance(part, dict)):
        crop, scale = transform.get('crop_size'), transform.get('scale') or transform.get('scales')
        if crop and transform.get('crop_type', 'absolute') == 'absolute':
            size = (crop, crop) if isinstance(crop, int) else tuple(crop)
        elif isinstance(scale, list | tuple):  # (columns, rows)
            scales = [scale] if isinstance(scale[0], int) else scale
            columns, rows = max(scales, key=lambda pair: pair[0] * pair[1])
            size = rows, columns
    return size


def pictures_of(dataset: dict, key: str, lengths: Mapping[str, int]) -> int | None:
    """Samples in an epoch of a data set, which may be a wrapper.

    Args:
        lengths: Of the data sets inside, by their keys.

    Returns:
        None for a wrapper that is not known, and without the length of a data set inside.
    """
    kind = _name(dataset)
    if 'datasets' in dataset:
        parts = [pictures_of(part, place, lengths) for place, part in each(dataset['datasets'], f'{key}.datasets')]
        return None if kind != 'ConcatDataset' or None in parts else sum(part or 0 for part in parts)
    if 'dataset' not in dataset:
        return lengths.get(key)
    inner = pictures_of(dataset['dataset'], f'{key}.dataset', lengths)
    times = dataset.get('times') if kind == 'RepeatDataset' else 1 if kind == 'MultiImageMixDataset' else None
    return None if inner is None or times is None else inner * times


def last_batch(loader: dict, pictures: int | None, processes: int = 1, most: int | None = None) -> int | None:
    """Pictures in the smallest batch that a process gets in an epoch, if it gets any picture.

    Args:
        pictures: In an epoch of all processes, None if unknown.
        most: So many batches are read.

    Returns:
        0 if all are dropped; None if a sampler or the number of pictures is unknown.
    """
    size, batches = loader.get('batch_size', 1), loader.get('batch_sampler')
    if loader.get('num_batch_per_epoch') or size == 1:
        return size
    if batches and _name(batches) != 'AspectRatioBatchSampler':
        return None
    sampler = loader['sampler']
    if not batches and _name(sampler) == 'InfiniteSampler':
        return size
    if _name(sampler) != 'DefaultSampler' or pictures is None:
        return None
    shares = {-(-pictures // processes)}
    if not sampler.get('round_up', True):
        shares.add(pictures // processes or 1)
    return min(_smallest(share, size, (batches or loader).get('drop_last', False), most) for share in shares)


def _smallest(pictures: int, size: int, drop_last: bool, most: int | None) -> int:
    full, rest = divmod(pictures, size)
    if rest and not drop_last and (most is None or full < most):
        return rest
    return size if full else 0


def _name(part: dict) -> str:
    """The type of a part, without its scope or module."""
    return str(part.get('type')).split('.')[-1]
