"""The data that a run reads and the folder that it writes to are checked before it writes anything."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mmengine.config import Config

from swinv2_mm.errors import UserError


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the files and folders that the data loaders and metrics name exist.

    Args:
        cfg: The config.
        splits: Those of ``'train'``, ``'val'``, ``'test'`` that the run reads.

    Raises:
        UserError: Some do not.
    """
    missing: dict[str, Path] = {}  # dotted key of the config -> the path it leads to
    datasets: list[dict] = []
    for split in splits:
        for key, dataset in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            lost = {name: path for name, path in _paths(dataset, key) if not path.exists()}
            datasets += [dataset] if lost else []
            missing |= lost
        if split != 'train':
            missing |= {key: path for key, path in _metric_paths(cfg, split) if not path.exists()}
    if not missing:
        return
    paths = [path for path in dict.fromkeys(missing.values()) if not set(path.parents) & set(missing.values())]
    listed = ', '.join(map(str, paths[:4])) + (f' and {len(paths) - 4} more' if len(paths) > 4 else '')
    raise UserError(f'data are missing: {listed} (relative to {Path.cwd()}). {_remedy(cfg, datasets, missing)}')


def check_numbers(cfg: Config) -> None:
    """Check the numbers that nothing else checks before a run has begun.

    Raises:
        UserError: One is of another type, or out of range.
    """
    for key, name, value in _numbers(cfg):
        least, kind = _LEAST[name]
        if (value is None and name in _OPTIONAL) or (value == -1 and name in _NEVER):
            continue
        unbounded = name == 'max_norm' and value == math.inf  # the norm is logged, and nothing clipped
        if isinstance(value, bool) or not isinstance(value, kind) or not (least <= value < math.inf or unbounded):
            number = 'a whole number' if kind is int else 'a number'
            never = f', or -1 for {_NEVER[name]}' if name in _NEVER else ''
            raise UserError(f'{key}={value!r} must be {number}, at least {least}{never}.')


# The least value of what has a name, and its type.
_LEAST = {
    'batch_size': (1, int),
    'num_workers': (0, int),
    'prefetch_factor': (1, int),
    'max_epochs': (1, int),
    'max_iters': (1, int),
    'val_interval': (1, int),
    'val_begin': (0, int),
    'accumulative_counts': (1, int),
    'base_batch_size': (1, int),
    'interval': (1, int),
    'max_keep_ckpts': (1, int),
    'seed': (0, int),
    'lr': (0, Real),
    'max_norm': (0, Real),
    'gamma': (0, Real),
    'milestones': (0, int),
}
_OPTIONAL = ('prefetch_factor', 'seed', 'lr')
_NEVER = {'interval': 'never', 'max_keep_ckpts': 'all'}


def _numbers(cfg: Config) -> Iterator[tuple[str, str, Any]]:
    """Those of the config's numbers that ``_LEAST`` knows: key, its last part, and value."""
    parts = [
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'train_cfg',
        'auto_scale_lr',
        'randomness',
        'optim_wrapper',
        'optim_wrapper.optimizer',
        'optim_wrapper.clip_grad',
    ]
    for group in ('default_hooks', 'param_scheduler'):
        node = cfg.get(group)
        names = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        parts += [group, *(f'{group}.{name}' for name in names)]
    for part in parts:
        node = cfg
        for name in part.split('.'):
            node = node[int(name)] if isinstance(node, list) else node.get(name) if hasattr(node, 'get') else None
        for name, value in node.items() if isinstance(node, dict) else ():
            if name in _LEAST:
                for number in value if isinstance(value, list | tuple) else [value]:
                    yield f'{part}.{name}', name, number


def check_strategy(cfg: Config) -> None:
    """Check that what the config's ``strategy`` is made of is installed.

    Raises:
        UserError: It is not.
    """
    kind = str((cfg.get('strategy') or {}).get('type'))
    if kind.endswith('DeepSpeedStrategy') and find_spec('deepspeed') is None:
        raise UserError(
            f'strategy.type={kind} needs the package deepspeed: pip install deepspeed. In configs/_base_/sharding, '
            'zero1.py and fsdp2.py need no package.'
        )


def datasets_of(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Walk to the data sets inside of ``RepeatDataset``, ``ConcatDataset``, ``ClassBalancedDataset`` and the like."""
    if isinstance(node, list | tuple):
        for index, item in enumerate(node):
            yield from datasets_of(item, f'{key}.{index}')
    elif isinstance(node, dict):
        inner = [name for name in ('dataset', 'datasets') if name in node]
        for name in inner:
            yield from datasets_of(node[name], f'{key}.{name}')
        if not inner and 'type' in node:
            yield key, node


def _paths(dataset: dict, key: str) -> Iterator[tuple[str, Path]]:
    """The files and folders of one data set, beside the key of the config that names each."""
    root = dataset.get('data_root') or ''
    if not is_local(root) or (dataset.get('backend_args') or {}).get('backend', 'local') not in ('local', 'disk'):
        return
    prefixes = dataset.get('data_prefix') or {}
    named = {'ann_file': dataset.get('ann_file')} | {f'data_prefix.{name}': path for name, path in prefixes.items()}
    named = {name: path for name, path in named.items() if isinstance(path, str) and path and is_local(path)}
    if root and not Path(root).exists():
        yield f'{key}.data_root', Path(root)  # one line for all that is inside
        named = {name: path for name, path in named.items() if Path(path).is_absolute()}
    for name, path in named.items():
        yield f'{key}.{name}', Path(root, path)


def _metric_paths(cfg: Config, split: str) -> Iterator[tuple[str, Path]]:
    """The annotation files that metrics read by themselves: CocoMetric joined its path when the config was parsed."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    several = isinstance(evaluator, list | tuple)
    for index, metric in enumerate(evaluator if several else [evaluator]):
        path = metric.get('ann_file') if isinstance(metric, dict) else None
        local = isinstance(path, str) and path and is_local(path)
        if local and (metric.get('backend_args') or {}).get('backend', 'local') in ('local', 'disk'):
            yield f'{split}_evaluator.{index}.ann_file' if several else f'{split}_evaluator.ann_file', Path(path)


_LAYOUTS = {
    'stuffthingmaps': 'COCO-Stuff (stuffthingmaps_trainval2017.zip of https://github.com/nightrome/cocostuff) is laid '
    'out as stuffthingmaps/{train,val}2017/ inside of COCO. ',
    'coco': 'COCO 2017 (https://cocodataset.org/#download) is laid out as train2017/, val2017/ and '
    'annotations/instances_{train,val}2017.json. ',
    'ade': 'ADE20K (http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip) is laid out as '
    'images/{training,validation}/ and annotations/{training,validation}/. ',
}


def _remedy(cfg: Config, datasets: list[dict], missing: dict[str, Path]) -> str:
    roots = [str(dataset.get('data_root') or '').rstrip('/') for dataset in datasets]
    root = roots[0] if roots and roots[0] else str(next(iter(missing.values())))
    if any('shapes' in Path(name).parts for name in [*roots, root]):
        return (
            f'Generate the shapes, in the folder of the repository: make data, or python tools/make_shapes.py {root}.'
        )
    types, paths = (dataset.get('type') for dataset in datasets), missing.values()
    kind = ' '.join(map(str, [root, *types, *paths])).lower()
    layout = next((text for name, text in _LAYOUTS.items() if name in kind), '')
    options = ' '.join(_option(cfg, key, path, root) for key, path in missing.items())
    link = f'mkdir -p {Path(root).parent} && ln -s /path/to/it {root}'
    return f'{layout}Link the data set there ({link}), or say where it is: --cfg-options {options}'


def _option(cfg: Config, key: str, path: Path, root: str) -> str:
    """The option that moves one missing path to ``/path/to/it``."""
    if key.endswith('.data_root'):
        return f'{key}=/path/to/it'
    try:
        return f'{key}=/path/to/it/{path.relative_to(root)}'
    except ValueError:
        return f'{key}=/path/to/{path.name}'


def check_work_dir(work_dir: str, option: str = '--work-dir') -> None:
    """Check that a folder can be made, or written to, without making it.

    Args:
        work_dir: The folder.
        option: What chooses it.

    Raises:
        UserError: A file is in the way, or the folder above may not be written to.
    """
    path = Path(work_dir).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        raise UserError(f'work dir {work_dir} cannot be made: {there} is a file. Choose another with {option}.')
    try:
        with TemporaryFile(dir=there):  # access() says yes to root, and of folders that nobody can write to
            pass
    except OSError as error:
        raise UserError(
            f'work dir {work_dir} cannot be made: {there} cannot be written to ({error.strerror}). Choose another with '
            f'{option}.'
        ) from error


def is_local(path: str) -> bool:
    """Whether a path is one of this machine: no URL, no name of a model zoo, no storage service."""
    return '://' not in str(path) and not str(path).startswith(('s3:', 'petrel:'))
