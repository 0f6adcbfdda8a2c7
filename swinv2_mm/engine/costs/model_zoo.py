"""The page docs/model_zoo.md, written from the configs, their metafile and the costs of their models."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.fileio import load

from swinv2_mm.checkpoints.catalog import RELEASES
from swinv2_mm.checkpoints.load import plain
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.costs import build_on_meta, complexity, count_parameters
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.sizes import VARIANTS

PAGE = Path('docs', 'model_zoo.md')
COMMAND = 'python tools/model_zoo.py'

_INTRODUCTION = f"""# Model zoo

What each config of [configs/](../configs) is, costs, and should reach. This page is generated from the configs and
[configs/metafile.yml](../configs/metafile.yml); `{COMMAND}` writes it anew, and

```bash
{COMMAND} CONFIG --shape 800 1333
```

counts a config of your own, stage by stage. Nothing here says how fast a model is: [performance.md](performance.md).

**Parameters** are in millions: of the backbone / of the whole model, with heads that only training uses.

**FLOPs** are 10<sup>9</sup> multiply-adds of one forward pass, each counted once, as papers do: of the backbone / of a
whole prediction. Matrix products and convolutions are counted; norms, soft-max and other element-wise operations are
not, nor is sampling (RoIAlign, deformable attention), nor the MLP of the position bias, which depends on the weights
alone. Padding is work, and counts: of an image to the sides given (multiples of 32, where the model pads batches so),
and of maps to whole windows. Box heads get as many proposals, mask heads as many boxes, as the test settings allow at
most (as a rule 1000 and 100).

**Input** is the largest image that the test pipeline makes; for semantic segmentation one crop, of the sliding window's
size or of the training's. **Target** is what the source publishes for this very model and schedule.
"""
_BACKBONES = """## Backbones

As classifiers of 1000 classes, next to what Microsoft's
[MODELHUB.md](https://github.com/microsoft/Swin-Transformer/blob/main/MODELHUB.md) states:

"""
_LARGER = """
On larger images, with the norms of all four stages and without classifier; FLOPs by image and window:

"""
_IMAGES = {(512, 512): (8, 16), (800, 1344): (8, 16, 32), (1536, 1536): (16, 32)}  # and windows

_TASKS = ('Object detection', 'Instance segmentation', 'Semantic segmentation', 'Generated shapes')
_COLUMNS = 'config|backbone|window (pretrained)|input|parameters|FLOPs|schedule, batch|target|status'.split('|')


def page(root: Path, track: Callable[[Sequence[dict]], Iterable[dict]] = iter) -> str:
    """The text of the page.

    Args:
        root: The repository.
        track: Wraps the models of the metafile, to show progress.

    Raises:
        UserError: A config is not in the metafile, or the other way round.
    """
    models = load(root / 'configs' / 'metafile.yml')['Models']
    leaves = {f'configs/{path.name}' for path in (root / 'configs').glob('*.py')}
    odd = leaves ^ {model['Config'] for model in models}
    if odd:
        raise UserError(f'{", ".join(sorted(odd))}: either the config or its entry in configs/metafile.yml is missing.')
    rows: dict[str, list[list[str]]] = {task: [] for task in _TASKS}
    for model in track(models):
        cfg = load_config(root / model['Config'])
        rows[task_of(cfg, model)].append(_row(cfg, model))
    tasks = [f'\n## {task}\n\n{_table(_COLUMNS, found)}' for task, found in rows.items() if found]
    return f'{_INTRODUCTION}\n{_BACKBONES}{_releases()}{_LARGER}{_larger()}{"".join(tasks)}'


def task_of(cfg: Config, model: dict) -> str:
    """The section of a model, by its data and by what it is evaluated for."""
    if model['Metadata']['Training Data'] == 'shapes':
        return 'Generated shapes'
    if cfg.default_scope == 'mmseg':
        return 'Semantic segmentation'
    return 'Instance segmentation' if 'segm' in cfg.val_evaluator.metric else 'Object detection'


def prediction_size(cfg: Config) -> tuple[int, int] | None:
    """Rows and columns that a model of a config predicts at once.

    Returns:
        For segmentation a crop of the sliding window's size, or of the training's; otherwise the largest image, lying,
        that the test pipeline resizes to. None if the config does not say.
    """
    if cfg.model.get('data_preprocessor', {}).get('size'):
        return tuple(cfg.model.test_cfg.get('crop_size') or cfg.model.data_preprocessor.size)
    for transform in cfg.get('test_dataloader', {}).get('dataset', {}).get('pipeline', ()):
        if transform.type == 'Resize':
            return tuple(sorted(transform.scale))
    return None


def windows_of(sizes: Sequence[tuple[int, int]]) -> str:
    """``16``, or the window of each stage where they differ, or ``7x5``."""
    words = [str(window) if isinstance(window, int) else 'x'.join(map(str, window)) for window in plain(sizes)]
    return words[0] if len(set(words)) == 1 else ' '.join(words)


def millions(count: int) -> str:
    """Parameters in millions."""
    return f'{count / 1e6:.1f}'


def giga(count: int | None) -> str:
    """Multiply-adds in 1e9, three digits or more; a dash for what could not be counted."""
    if count is None:
        return '–'
    return f'{count / 1e9:.{2 if count < 10e9 else 1 if count < 100e9 else 0}f}'


def _row(cfg: Config, model: dict) -> list[str]:
    about = model['Metadata']
    built = build_on_meta(cfg.model, cfg.default_scope)
    backbone = built.backbone
    cost = complexity(built, prediction_size(cfg))
    return [
        f'[{model["Name"]}](../{model["Config"]})',
        f'SwinV2-{cfg.model.backbone.arch[0].upper()}',
        f'{windows_of(backbone.window_size)} ({windows_of(backbone.pretrained_window_sizes)})',
        '{} × {}'.format(*cost.size),
        f'{millions(cost.backbone_parameters)} / {millions(cost.parameters)}',
        f'{giga(cost.backbone)} / {giga(cost.total)}',
        _schedule(about),
        f'{about["Target"] or "–"} ({about["Target Source"]})',
        _status(model),
    ]


def _schedule(about: dict) -> str:
    if 'Batch Size' not in about:
        return 'test only'
    length = f'{about["Epochs"]} epochs' if 'Epochs' in about else f'{about["Iterations"] / 1000:g}k iterations'
    return f'{length}, {about["Batch Size"]}'


def _status(model: dict) -> str:
    metrics = [f'{value} {name}' for result in model.get('Results', ()) for name, value in result['Metrics'].items()]
    status = model['Metadata']['Status']
    return f'{status}: {", ".join(metrics)}' if metrics else status


def _build(arch: str, window: Any, **arguments: Any) -> SwinTransformerV2:
    with torch.device('meta'):
        return SwinTransformerV2(arch, window_size=window, **arguments)


def _releases() -> str:
    rows = []
    for release in RELEASES.values():
        if release.gflops is None:
            continue
        model = _build(release.arch, release.window_size, out_indices=[3])  # a classifier has one norm
        C, side = model.num_features[3], release.image_size
        rows.append(
            [
                f'SwinV2-{release.arch[0].upper()}',
                f'{side} × {side}',
                windows_of(model.window_size),
                millions(count_parameters(model) + 1000 * (C + 1)),
                str(release.parameters),
                f'{(sum(model.multiply_adds((side, side))) + 1000 * C) / 1e9:.2f}',
                str(release.gflops),
                release.data,
            ]
        )
    return _table(('backbone', 'image', 'window', 'parameters', 'published', 'FLOPs', 'published', 'trained on'), rows)


def _larger() -> str:
    images = [(size, window) for size, windows in _IMAGES.items() for window in windows]
    columns = [f'{size[0]} × {size[1]}, w{window}' for size, window in images]
    rows = []
    for arch in VARIANTS:
        model = _build(arch, 8)
        row = [f'SwinV2-{arch[0].upper()}', millions(count_parameters(model))]
        for size, window in images:
            model.set_window_size(window)
            row.append(giga(sum(model.multiply_adds(size))))
        rows.append(row)
    return _table(('backbone', 'parameters', *columns), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; columns of numbers are aligned to the right."""
    right = [not any(set(row[i]) - set('0123456789./ –') for row in rows) for i in range(len(columns))]
    lines = [columns, ['---:' if number else '---' for number in right], *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)
