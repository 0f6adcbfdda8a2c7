"""Check the weights that a run starts from: they exist, can be read, and fit the model."""

from contextlib import suppress
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseTTAModel

from swinv2_mm.checkpoints.convert import has_backbone
from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY, told_windows
from swinv2_mm.checkpoints.load import pairs, plain
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.annotations import moved_class, reordering
from swinv2_mm.engine.checks.lookup import find_class
from swinv2_mm.engine.config.parts import pretrained_parts
from swinv2_mm.engine.recipe.pretrained import Pretrained
from swinv2_mm.engine.saving.matching import match_windows, misfits
from swinv2_mm.engine.saving.reading import open_checkpoint
from swinv2_mm.errors import UserError, listed
from swinv2_mm.models.simmim import SimMIM
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import MODELS


def check_pretrained(cfg: Config, context: Context | None = None) -> None:
    """Check the files of every ``init_cfg`` of the model."""
    if context and 'train' not in context.splits:
        return
    for key, init_cfg, module in pretrained_parts(cfg.get('model')):
        ours, kind = init_cfg['type'] == 'swinv2_mm.Pretrained', _class_of(module)
        fills = kind is None or issubclass(kind, SwinTransformerV2 | SimMIM)
        if cfg.get('resume') and fills:
            continue  # a resumed model does not load them
        path = init_cfg.get('checkpoint')
        if ours and not fills:
            raise UserError(_misplaced(key, path, module, kind.__name__))
        if not path:
            raise UserError(
                f'{key}=dict(type={init_cfg["type"]!r}) names no file; pass --cfg-options '
                f'{key}.checkpoint=/path/to/it, or set {key}=None to start from random weights.'
            )
        model = _on_meta(module)
        if not ours:
            checkpoint = open_checkpoint(path, f'{key}.checkpoint')
            if checkpoint is not None and isinstance(model, SwinTransformerV2):
                _check_backbone(model, checkpoint, init_cfg, key)
        elif model is not None:
            try:
                Pretrained(**{name: value for name, value in init_cfg.items() if name != 'type'}).check(model)
            except UserError as error:
                raise UserError(f'{key}: {error} Or set {key}=None to start from random weights.') from None


def check_load_from(cfg: Config, context: Context) -> None:
    """Check the weights of a whole model: all tensors of a test or a resumed run, one of a training that starts."""
    checkpoint = open_checkpoint(cfg.load_from, 'load_from') if cfg.get('load_from') else None
    if checkpoint is None:
        return
    model, path = context.model, cfg.load_from
    while isinstance(model, BaseTTAModel):
        model = model.module
    wanted = model.state_dict()
    loaded = checkpoint.get('state_dict', checkpoint)
    faults = misfits(loaded, wanted)
    shapes = {key.removeprefix('module.'): getattr(tensor, 'shape', None) for key, tensor in loaded.items()}
    # The head of timm's classifiers has our name, and would be all that is loaded.
    own = [key for key in wanted if key.startswith('backbone.')] if has_backbone(shapes) else []
    fits = any(shapes.get(key) == wanted[key].shape for key in own or wanted)
    whole = cfg.get('resume') or 'test' in context.splits
    if faults and (whole or not fits):
        raise UserError(
            f'{path} does not fit this config: {faults}. It belongs to another config, holds a backbone alone, or is '
            f'of another code base.{_remedy(cfg, model, path, bool(whole))}'
        )
    match_windows(model, checkpoint, path)
    if whole:
        _compare_classes(checkpoint, path, context)


def _remedy(cfg: Config, model: Any, path: str, whole: bool) -> str:
    """How to use a file that is no checkpoint of the model: by its conversion, or by an ``init_cfg``."""
    remedies = []
    if cfg.get('default_scope') == 'mmpretrain':
        convert = f'tools/convert_ckpt.py {path} classifier.pth --classifier'
        remedies.append(f' For a classifier of another code base: python {convert}, and take what it writes.')
    parts = {'a whole SimMIM': 'model'} if isinstance(model, SimMIM) else {}
    for what, place in {} if whole else (parts | {'a backbone': 'model.backbone'}).items():
        remedies.append(
            f' For {what} pass --cfg-options load_from=None {place}.init_cfg.type=swinv2_mm.Pretrained '
            f'{place}.init_cfg.checkpoint={path} instead.'
        )
    return ''.join(remedies)


def _compare_classes(checkpoint: dict, path: str, context: Context) -> None:
    """Refuse data whose labels mean other classes than those that the weights were trained for."""
    meta = checkpoint.get('meta') or {}
    of_data = meta.get('dataset_meta') or {}
    trained = of_data.get('classes') or of_data.get('CLASSES') or meta.get('CLASSES') or ()  # in capitals before 2023
    if isinstance(trained, str):
        return
    for key, names in context.classes.items():
        moved = moved_class(names, trained)
        if moved is None:
            if trained and list(trained) != list(names):
                context.warnings.append(
                    f'{path} was trained for the classes {listed(trained)}; {key} calls them {listed(names)}.'
                )
            continue
        dataset = context.datasets.get(key)
        coco = dataset is not None and str(dataset.ann_file).endswith('.json')
        remedy = f', and order the file alike: {reordering(dataset.ann_file, trained)}' if coco else '.'
        raise UserError(
            f'{path} was trained for the classes {listed(trained, 20)}; {key} has {listed(names, 20)}, so that '
            f'{moved!r} is label {[*trained].index(moved)} in the weights and {[*names].index(moved)} in the '
            f'data. Set metainfo=dict(classes={tuple(trained)}) in every data set{remedy}'
        )


def _class_of(module: dict) -> Any:
    """The class of a module; None if there is none, which check_model reports."""
    with suppress(UserError):
        kind = find_class(module, '', MODELS)
        return kind if isinstance(kind, type) else None
    return None


def _misplaced(key: str, path: str | None, module: dict, kind: str) -> str:
    """The message for ``swinv2_mm.Pretrained`` of a module that it cannot fill."""
    place = key.partition('.init_cfg')[0]
    backbone = f'{place if "backbone" in module else "model"}.backbone.init_cfg'
    return (
        f'{key}: swinv2_mm.Pretrained fills a backbone or a whole SimMIM; {kind} is neither. Pass --cfg-options '
        f'{place}.init_cfg=None {backbone}.type=swinv2_mm.Pretrained {backbone}.checkpoint={path or "/path/to/it"}.'
    )


def _on_meta(module: dict) -> Any:
    """A backbone or a SimMIM of a config without memory; None if it is neither or has a wrong argument."""
    if module.get('type') not in ('swinv2_mm.SwinTransformerV2', 'swinv2_mm.SimMIM'):
        return None
    with suppress(TypeError, ValueError), torch.device('meta'):  # check_model reports these
        return MODELS.build({**module, 'init_cfg': None})
    return None


def _check_backbone(backbone: Any, checkpoint: dict, init_cfg: dict, place: str) -> None:
    """Check that a file fills the backbone but for its output norms; mmengine would warn, and leave the rest random."""
    name, windows = f'{place}.checkpoint={init_cfg["checkpoint"]}', backbone.pretrained_window_sizes
    loaded = checkpoint.get('state_dict', checkpoint)
    if init_cfg.get('prefix'):
        prefix = init_cfg['prefix'].rstrip('.') + '.'
        loaded = {key.removeprefix(prefix): tensor for key, tensor in loaded.items() if key.startswith(prefix)}
    known = pairs((checkpoint.get('meta') or {}).get('pretrained_window_sizes'), len(windows))
    if PRETRAINED_KEY in loaded:  # mmengine's loader hands them to the backbone
        known = told_windows(PRETRAINED_KEY, loaded[PRETRAINED_KEY])[: len(windows)] if backbone.windows_given else None
    if known is not None and known != windows:
        raise UserError(
            f'{name} was trained for pretrained_window_sizes={plain(known)}; the backbone has {plain(windows)}. Set '
            f'{place.partition(".init_cfg")[0]}.pretrained_window_sizes to that.'
        )
    wanted = {key: tensor for key, tensor in backbone.state_dict().items() if not key.startswith('norm')}
    faults = misfits(loaded, wanted)
    if faults:
        raise UserError(
            f'{name} does not fit the backbone: {faults}. Compare arch, or embed_dims and depths. If they are right, '
            f'pass --cfg-options {place}.type=swinv2_mm.Pretrained, which finds the prefix of the keys and converts '
            'files of other code bases.'
        )


def starts_from_noise(cfg: Config) -> bool:
    """Whether a training would start with random weights in the backbone, and is no pre-training."""
    model = cfg.get('model') or {}
    pretrains = model.get('type') == 'swinv2_mm.SimMIM' or cfg.get('default_scope') == 'mmpretrain'
    if cfg.get('load_from') or cfg.get('resume') or pretrains:
        return False
    legacy = model.get('pretrained') or (model.get('backbone') or {}).get('pretrained')
    return 'backbone' in model and not legacy and not any(pretrained_parts(model))
