"""From a config and a checkpoint to a verified ONNX file."""

from __future__ import annotations

import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from torch import nn

import swinv2_mm
from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.engine.checks.lookup import with_key
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.recipe.window_size import set_window_size
from swinv2_mm.engine.saving.matching import match_windows, misfits
from swinv2_mm.engine.saving.reading import open_checkpoint
from swinv2_mm.errors import UserError, say
from swinv2_mm.inference.export.choice import choose_part
from swinv2_mm.inference.export.graph import backbone_of, check_packages, example, write_graph
from swinv2_mm.inference.export.parts import Part
from swinv2_mm.inference.export.verify import verify

TOLERANCE, TOLERANCE_OF_HALF = 1e-4, 3e-2


def export_model(
    config: str,
    checkpoint: str,
    out: str,
    *,
    part: str = 'model',
    logits: bool = False,
    half: bool = False,
    window_size: list[int] | None = None,
    tolerance: float | None = None,
    force: bool = False,
    cfg_options: dict[str, Any] | None = None,
) -> float:
    """Export a trained model to ONNX; the arguments are those of ``tools/export.py``, see its ``--help``.

    Returns:
        The largest difference from PyTorch.

    Raises:
        UserError: A package is missing, the checkpoint does not fit, the kind of model cannot be exported, or the file
            differs from PyTorch. Nothing is left behind.
    """
    check_packages()
    path = _place(out, force)
    cfg = load_config(config, cfg_options)
    model, meta = load_model(cfg, config, checkpoint)
    if window_size is not None:
        set_window_size(model, window_size[0] if len(window_size) == 1 else window_size)
    chosen = choose_part(model, part, logits)
    metadata = describe(cfg, chosen, meta, half)
    limit = tolerance if tolerance is not None else TOLERANCE_OF_HALF if half else TOLERANCE
    images = example(model)[: 1 if chosen.single else 2]
    try:
        with replacing(path) as partial:
            say(f'tracing {type(chosen.model).__name__}; this takes about a minute')
            write_graph(deepcopy(chosen).half() if half else chosen, images, chosen.outputs, metadata, partial)
            worst = verify(chosen, partial, limit)
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error}. Nothing was left behind.') from error
    say(f'{path}: {path.stat().st_size / 1e6:.0f} MB, largest difference {worst:.1e}')
    return worst


def _place(out: str, force: bool) -> Path:
    path = Path(out).expanduser()
    if path.suffix != '.onnx':
        raise UserError(f'{out}: name a file that ends in .onnx.')
    if path.is_dir() or (path.exists() and not force):
        raise UserError(f'{out} exists and is kept; choose another name, or give --force to replace it.')
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f'{out} cannot be written: {folder} is no folder that you may write to. Choose another.')
    return path


def load_model(cfg: Config, config: str, checkpoint: str) -> tuple[Any, dict]:
    """The model of a config with the weights of a checkpoint, in evaluation, and the ``meta`` of the checkpoint.

    Raises:
        UserError: The config has no model, or the checkpoint is missing, unreadable, or does not fill the model.
    """
    if not cfg.get('model'):
        raise UserError(f'{config} has no model.')
    content = open_checkpoint(checkpoint, 'CHECKPOINT')
    if content is None:
        raise UserError(f'{checkpoint}: give a file of this machine; download it before.')
    plan = cfg.model
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in plan:
        plan = dict(plan, data_preprocessor=cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'), with_key(plan, 'model'):
        model: nn.Module = MODELS.build(deepcopy(plan))
    state = {key.removeprefix('module.'): value for key, value in content.get('state_dict', content).items()}
    faults = misfits(state, model.state_dict())
    if faults:
        raise UserError(f'{checkpoint} does not fit {config}: {faults}. It belongs to another, or is a backbone.')
    match_windows(model, content, checkpoint)
    model.load_state_dict(state, strict=False)
    return revert_sync_batchnorm(model).float().eval(), content.get('meta') or {}


def describe(cfg: Config, part: Part, meta: dict, half: bool) -> dict[str, Any]:
    """The metadata of a file: what a client needs to know."""
    backbone = backbone_of(part)
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    data = {**_classes_of_config(cfg), **{str(k).lower(): v for k, v in (meta.get('dataset_meta') or {}).items()}}
    known = {
        'task': part.task,
        'classes': list(data['classes']) if data.get('classes') else None,
        'palette': [list(map(int, color)) for color in data['palette']] if data.get('palette') else None,
        'mean': list(given['mean']) if given.get('mean') else None,
        'std': list(given['std']) if given.get('std') else None,
        # The data pipelines of MMDetection and MMSegmentation read BGR.
        'channels': 'RGB' if given.get('bgr_to_rgb') else 'BGR',
        'bgr_to_rgb': bool(given.get('bgr_to_rgb')),
        'normalized_in_graph': part.task != 'features',
        'windows': [list(window) for window in backbone.window_size],
        'pretrained_windows': [list(window) for window in backbone.pretrained_window_sizes],
        'strides': [info['reduction'] for info in backbone.feature_info],
        'float16': half,
        'versions': {'swinv2_mm': swinv2_mm.__version__, 'torch': torch.__version__},
    }
    return {key: value for key, value in known.items() if value is not None}


def _classes_of_config(cfg: Config) -> dict[str, Any]:
    """Classes and palette of the data set that the config tests on; empty if it names none."""
    data: Any = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in data:  # a wrapper
        data = data['dataset']
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        kind = DATASETS.get(data['type']) if isinstance(data.get('type'), str) else None
    return {**getattr(kind, 'METAINFO', {}), **(data.get('metainfo') or {})}
