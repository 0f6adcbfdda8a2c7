"""Check that the data exist that a run reads, and that the folders can be made that it writes to."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from mmengine.config import Config

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.errors import UserError, listed


def check_data(cfg: Config, context: Context) -> None:
    """Check that the files and folders exist that the data loaders and metrics name."""
    missing: dict[str, Path] = {}  # dotted key of the config -> the path it leads to
    datasets: list[dict] = []
    for split in context.splits:
        for key, dataset in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            lost = {name: path for name, path in _paths(dataset, key) if not path.exists()}
            datasets += [dataset] if lost else []
            missing |= lost
        if split != 'train':
            missing |= {key: path for key, path in _metric_paths(cfg, split) if not path.exists()}
    if not missing:
        return
    paths = [path for path in dict.fromkeys(missing.values()) if not set(path.parents) & set(missing.values())]
    raise UserError(
        f'data are missing: {listed(paths, 4)} (relative to {Path.cwd()}). {_remedy(cfg, datasets, missing)}'
    )


def datasets_of(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    """Walk to the data sets inside ``RepeatDataset``, ``ConcatDataset``, ``ClassBalancedDataset`` and the like."""
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
    """The files and folders of one data set, each with the key of the config that names it."""
    root = dataset.get('data_root') or ''
    if not is_local(root) or not _on_disk(dataset):
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
    """The annotation files of metrics, each with its key: the config joined CocoMetric's path when it was parsed."""
    evaluator = cfg.get(f'{split}_evaluator') or []
    several = isinstance(evaluator, list | tuple)
    for index, metric in enumerate(evaluator if several else [evaluator]):
        path = metric.get('ann_file') if isinstance(metric, dict) else None
        if isinstance(path, str) and path and is_local(path) and _on_disk(metric):
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


def check_folders(cfg: Config, context: Context) -> None:
    """Check the folders for logs, checkpoints and predictions."""
    check_folder(cfg.work_dir, '--work-dir')
    if 'train' in context.splits:
        out_dir = (cfg.default_hooks.get('checkpoint') or {}).get('out_dir')
        if out_dir is not None:
            check_folder(out_dir, 'default_hooks.checkpoint.out_dir')
    if 'test' in context.splits:
        evaluator = cfg.test_evaluator
        for metric in evaluator if isinstance(evaluator, list | tuple) else [evaluator]:
            out = metric.get('out_file_path') or metric.get('output_dir') if isinstance(metric, dict) else None
            if isinstance(out, str) and is_local(out):
                check_folder(str(Path(out).parent), '--out')


def check_folder(folder: str, option: str) -> None:
    """Check that a folder can be made, or written to, without making it; ``option`` chooses another."""
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        raise UserError(f'folder {folder} cannot be made: {there} is a file. Choose another with {option}.')
    try:
        with TemporaryFile(dir=there):  # access() says yes to root, and of folders that nobody can write to
            pass
    except OSError as error:
        raise UserError(
            f'folder {folder} cannot be made: {there} cannot be written to ({error.strerror}). Choose another with '
            f'{option}.'
        ) from error


def is_local(path: str) -> bool:
    """Whether a path is on this machine: no URL, no name in a model zoo, no storage service."""
    return '://' not in str(path) and not str(path).startswith(('s3:', 'petrel:'))


def _on_disk(part: dict) -> bool:
    return (part.get('backend_args') or {}).get('backend', 'local') in ('local', 'disk')
