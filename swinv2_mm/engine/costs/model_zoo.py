"""The tables of docs/model_zoo.md, written from the configs, their metafile and the costs of their models."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio import load

from swinv2_mm.checkpoints.catalog import RELEASES
from swinv2_mm.engine.config import MissingFramework, load_config
from swinv2_mm.engine.config.batches import input_size
from swinv2_mm.engine.costs import build_on_meta, complexity, count_parameters
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.sizes import VARIANTS

PAGE = Path('docs', 'model_zoo.md')
COMMAND = 'python tools/model_zoo.py'
# Images and windows in the head of the table of larger images.
_LARGER = {(512, 512): (8, 16), (800, 1344): (8, 16, 32), (1536, 1536): (16, 32)}
_TABLE = r'(<!-- (.+) -->\n\n.*\n.*\n)((?:\|.*\n)*)'  # its name, and its rows below the head
_TASKS = ('Object detection', 'Instance segmentation', 'Semantic segmentation', 'Pre-training', 'Generated shapes')


def page(root: Path, track: Callable[[Sequence[dict]], Iterable[dict]] = iter) -> str:
    """The text of the page, with new rows: a table follows the comment that names it, and keeps its head.

    A row whose framework is not installed here stays as it is: no environment has to have all frameworks.

    Args:
        root: The repository.
        track: Wraps the models of the metafile, to show progress.

    Raises:
        UserError: A config is not in the metafile, or the other way round; or has no row yet, and no framework.
    """
    models = load(root / 'configs' / 'metafile.yml')['Models']
    leaves = {f'configs/{path.name}' for path in (root / 'configs').glob('*.py')}
    odd = leaves ^ {model['Config'] for model in models}
    if odd:
        raise UserError(f'{", ".join(sorted(odd))}: either the config or its entry in configs/metafile.yml is missing.')
    tables = {'Backbones': [*map(_line, _releases())], 'Larger images': [*map(_line, _larger())]}
    tables |= {task: [] for task in _TASKS}
    text = (root / PAGE).read_text()
    standing = {
        row.partition(']')[0].removeprefix('| ['): (found[2], row)
        for found in re.finditer(_TABLE, text)
        for row in found[3].splitlines()
    }
    for model in track(models):
        try:
            cfg = load_config(root / model['Config'])
        except MissingFramework:
            if model['Name'] not in standing:
                raise
            task, row = standing[model['Name']]
        else:
            task, row = task_of(cfg, model), _line(_row(cfg, model))
        tables[task].append(row)
    return re.sub(_TABLE, lambda found: found[1] + ''.join(f'{row}\n' for row in tables[found[2]]), text)


def _line(row: Iterable) -> str:
    return f'| {" | ".join(map(str, row))} |'


def task_of(cfg: Config, model: dict) -> str:
    """The section of a model, by its data and by what it is trained or evaluated for."""
    if model['Metadata']['Training Data'] == 'shapes':
        return 'Generated shapes'
    if cfg.model.type == 'swinv2_mm.SimMIM' or cfg.default_scope == 'mmpretrain':
        return 'Pre-training'
    if cfg.default_scope == 'mmseg':
        return 'Semantic segmentation'
    return 'Instance segmentation' if 'segm' in cfg.val_evaluator.metric else 'Object detection'


def prediction_size(cfg: Config) -> tuple[int, int] | None:
    """Rows and columns that a model of a config predicts at once, if the config says so.

    For segmentation a crop of the sliding window's size, or of the training's; otherwise the largest image, lying, that
    the test pipeline resizes to. SimMIM paints crops of its training; a classifier sees the centre of the image.
    """
    if cfg.model.type == 'swinv2_mm.SimMIM':
        return input_size(cfg)
    if cfg.model.get('data_preprocessor', {}).get('size'):
        return tuple(cfg.model.test_cfg.get('crop_size') or cfg.model.data_preprocessor.size)
    for transform in cfg.get('test_dataloader', {}).get('dataset', {}).get('pipeline', ()):
        if transform.type == 'CenterCrop':
            side = transform.crop_size
            return (side, side) if isinstance(side, int) else tuple(side)
        if transform.type == 'Resize':
            return min(transform.scale), max(transform.scale)
    return None


def windows_of(sizes: Sequence[tuple[int, int]]) -> str:
    """``16``, or the window of each stage where they differ, or ``7x5``."""
    words = [str(rows) if rows == columns else f'{rows}x{columns}' for rows, columns in sizes]
    return words[0] if len(set(words)) == 1 else ' '.join(words)


def millions(count: int) -> str:
    """Parameters in millions."""
    return f'{count / 1e6:.1f}'


def giga(count: int | None) -> str:
    """Multiply-adds in 1e9, three digits or more; a dash for what could not be counted."""
    if count is None:
        return '–'
    return f'{count / 1e9:.{2 if count < 10e9 else 1 if count < 100e9 else 0}f}'


def _name(arch: str) -> str:
    return f'SwinV2-{arch[0].upper()}'


def _row(cfg: Config, model: dict) -> tuple:
    about = model['Metadata']
    built = build_on_meta(cfg.model, cfg.default_scope)
    backbone: Any = built.backbone
    size: Any = prediction_size(cfg)  # each config of the zoo says it
    cost = complexity(built, size)
    schedule, status = 'test only', about['Status']
    if 'Batch Size' in about:
        length = f'{about["Epochs"]} epochs' if 'Epochs' in about else f'{about["Iterations"] / 1000:g}k iterations'
        schedule = f'{length}, {about["Batch Size"]}'
    metrics = [f'{value} {name}' for result in model.get('Results', ()) for name, value in result['Metrics'].items()]
    return (
        f'[{model["Name"]}](../{model["Config"]})',
        _name(cfg.model.backbone.arch),
        f'{windows_of(backbone.window_size)} ({windows_of(backbone.pretrained_window_sizes)})',
        '{} × {}'.format(*cost.size),
        f'{millions(cost.backbone_parameters)} / {millions(cost.parameters)}',
        f'{giga(cost.backbone)} / {giga(cost.total)}',
        schedule,
        f'{about["Target"] or "–"} ({about["Target Source"]})',
        f'{status}: {", ".join(metrics)}' if metrics else status,
    )


def _releases() -> Iterator[tuple]:
    """The classifiers whose costs Microsoft states: their own, and ours."""
    for release in RELEASES.values():
        if release.gflops is None:
            continue
        with torch.device('meta'):  # a classifier has one norm
            model = SwinTransformerV2(release.arch, window_size=release.window_size, out_indices=[3])
        C, side = model.num_features[3], release.image_size
        parameters = millions(count_parameters(model) + 1000 * (C + 1))
        flops = f'{(sum(model.multiply_adds((side, side))) + 1000 * C) / 1e9:.2f}'
        found = parameters, release.parameters, flops, release.gflops
        yield _name(release.arch), f'{side} × {side}', windows_of(model.window_size), *found, release.data


def _larger() -> Iterator[tuple]:
    for arch in VARIANTS:
        with torch.device('meta'):
            model = SwinTransformerV2(arch, window_size=8)
        flops = []
        for size, windows in _LARGER.items():
            for window in windows:
                model.set_window_size(window)
                flops.append(giga(sum(model.multiply_adds(size))))
        yield _name(arch), millions(count_parameters(model)), *flops
