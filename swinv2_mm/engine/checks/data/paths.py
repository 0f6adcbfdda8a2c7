"""Check that the data exist that a run reads, and that the folders can be made that it writes to."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile

from mmengine.config import Config

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.config.parts import datasets_of, each, is_local
from swinv2_mm.errors import UserError, listed

# The folders of generated data, and what writes them.
_GENERATED = {
    'shapes': 'make data, or python tools/make_shapes.py {root}',
    'shapes_unlabelled': 'python tools/make_shapes.py {root} --num-train 3000 --seed 1',
}


def check_data(cfg: Config, context: Context) -> None:
    """Check that the files and folders exist that the data loaders and metrics name."""
    missing = [(key, root or path, path) for key, root, path in _data(cfg, context.splits) if not path.exists()]
    if not missing:
        return
    root = Path(missing[0][1])
    paths = [*dict.fromkeys(path for _, _, path in missing)]
    generated = next((name for name in _GENERATED if name in root.parts), None)
    if generated:
        remedy = f'Generate the shapes, in the folder of the repository: {_GENERATED[generated].format(root=root)}.'
    else:
        options = ' '.join(dict.fromkeys(_option(key, root, path) for key, _, path in missing))
        link = f'mkdir -p {root.parent} && ln -s /path/to/it {root}'
        remedy = f'Link the data set there ({link}), or say where it is: --cfg-options {options}'
    told = listed(paths, 1 if generated else 6)
    raise UserError(f'data are missing: {told} (relative to {Path.cwd()}). {remedy}')


def _data(cfg: Config, splits: Sequence[str]) -> Iterator[tuple[str, str, Path]]:
    """What a run reads: the key of the config to change if it is missing, the data root, and the path."""
    for split in splits:
        for key, dataset in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            root = dataset.get('data_root') or ''
            if not is_local(root) or not on_disk(dataset):
                continue
            prefixes = dataset.get('data_prefix') or {}
            if not prefixes and str(dataset['type']).split('.')[-1] == 'ImageNet':
                prefixes = dataset.get('split')  # MMPretrain's folder for it
            if isinstance(prefixes, str):
                prefixes = {'': prefixes}
            names = {'ann_file': dataset.get('ann_file')}
            for name in prefixes or ():
                names |= dict(each(prefixes[name], f'data_prefix.{name}'.rstrip('.')))
            names = {name: path for name, path in names.items() if path and isinstance(path, str) and is_local(path)}
            if root and not names:
                yield f'{key}.data_root', root, Path(root)
            for name, path in names.items():
                moved = root and not Path(root).exists() and not Path(path).is_absolute()
                yield f'{key}.{"data_root" if moved else name}', root, Path(root, path)
        for key, metric in each(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            # The config joined the path of CocoMetric when it was parsed.
            path = metric.get('ann_file') if isinstance(metric, dict) else None
            if path and isinstance(path, str) and is_local(path) and on_disk(metric):
                yield f'{key}.ann_file', '', Path(path)


def on_disk(part: dict) -> bool:
    """Whether a data set or metric reads from this machine's disks."""
    return (part.get('backend_args') or {}).get('backend', 'local') in ('local', 'disk')


def _option(key: str, root: Path, path: Path) -> str:
    """The option that moves one missing path to ``/path/to/it``."""
    if key.endswith('.data_root'):
        return f'{key}=/path/to/it'
    return f'{key}=/path/to/{Path("it", path.relative_to(root)) if path.is_relative_to(root) else path.name}'


def check_folders(cfg: Config, context: Context) -> None:
    """Check the folders for logs, checkpoints and predictions."""
    check_folder(cfg.work_dir, '--work-dir')
    if 'train' in context.splits:
        out_dir = (cfg.default_hooks.get('checkpoint') or {}).get('out_dir')
        if out_dir is not None:
            check_folder(out_dir, 'default_hooks.checkpoint.out_dir')
    for _, metric in each(cfg.test_evaluator, '') if 'test' in context.splits else ():
        metric = metric if isinstance(metric, dict) else {}
        file, out = metric.get('out_file_path'), metric.get('output_dir')
        out = str(Path(file).parent) if isinstance(file, str) else out
        if isinstance(out, str) and is_local(out):
            check_folder(out, '--out')
    for hook in cfg.get('custom_hooks') or ():
        if hook.get('type') == 'swinv2_mm.PicturesHook' and hook.get('out_dir') is not None:
            check_folder(hook['out_dir'], '--show-dir')


def check_folder(folder: str, option: str) -> None:
    """Check that a folder can be made, or written to, without making it; ``option`` chooses another."""
    path = Path(folder).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    reason = 'is a file'
    if there.is_dir():
        try:
            with TemporaryFile(dir=there):  # access() says yes to root, and of folders that nobody can write to
                return
        except OSError as error:
            reason = f'cannot be written to ({error.strerror})'
    raise UserError(f'folder {folder} cannot be made: {there} {reason}. Choose another with {option}.')
