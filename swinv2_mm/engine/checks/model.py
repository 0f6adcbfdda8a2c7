"""Build the model in the dry run, without memory for its weights, and hold it against the data sets and the window."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import nn

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import find_class, with_key
from swinv2_mm.engine.config.batches import input_size
from swinv2_mm.engine.config.parts import initializers, nested
from swinv2_mm.engine.recipe.window_size import set_window_size
from swinv2_mm.errors import UserError, listed
from swinv2_mm.models.simmim import SimMIM


def check_model(cfg: Config, context: Context) -> None:
    """Build the model, after looking up every ``init_cfg``, which a model itself does after the run has begun."""
    config = cfg.model
    if cfg.get('data_preprocessor') and 'data_preprocessor' not in config:
        config = dict(config, data_preprocessor=cfg.data_preprocessor)
    for key, init_cfg, _ in initializers(config):
        find_class(init_cfg, key, WEIGHT_INITIALIZERS)
    context.model = build_model(config)


def build_model(config: Any, key: str = 'model') -> nn.Module:
    """Build a model without memory for its weights, which are neither downloaded nor read; a mistake is a UserError."""
    model = deepcopy(config)
    for place, part in nested(model, key):
        if place.endswith('.backbone') and isinstance(part, dict) and 'init_cfg' in part:
            part['init_cfg'] = None
    with with_key(model, key):
        try:
            with torch.device('meta'):
                return MODELS.build(deepcopy(model))
        except UserError:
            raise
        except Exception:  # it may need values, which the meta device does not have
            return MODELS.build(model)


def check_classes(cfg: Config, context: Context) -> None:
    """Check that the heads have as many classes as the data sets.

    A label beyond them would crash a GPU without a reason; a class beyond the labels would never be learned.
    """
    # The runner hands the preprocessor to the model, if it stands beside it.
    beside = {'data_preprocessor': cfg.get('data_preprocessor')} if 'data_preprocessor' not in cfg.model else {}
    modules = {name if name in beside else f'model.{name}': module for name, module in context.model.named_modules()}
    kinds = {name: type(module).__name__ for name, module in modules.items()}
    if 'PanopticFPNHead' in kinds.values():
        return  # things and stuff have heads of their own
    heads = {
        name: module.num_classes
        for name, module in modules.items()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not name.startswith('model.backbone')
        and 'rpn_head' not in name.split('.')
        and kinds[name] != 'FusedSemanticHead'
    }
    parts = [*nested(cfg.model, 'model'), *nested(beside.get('data_preprocessor'), 'data_preprocessor')]
    spelt_out = {key for key, node in parts if isinstance(node, dict) and 'num_classes' in node}
    for key, names in context.classes.items():
        wrong = {head: number for head, number in heads.items() if number != len(names)}
        if wrong:
            found = ' and '.join(f'{head}.num_classes={number}' for head, number in wrong.items())
            options = [f'{head}.num_classes={len(names)}' for head in wrong if head in spelt_out]
            remedy = f'Pass --cfg-options {" ".join(options)}' if options else f'Set num_classes={len(names)}'
            raise UserError(
                f'{found} {"does" if len(wrong) == 1 else "do"} not match {key}, which has {len(names)} classes '
                f'({listed(names)}). {remedy}, or set metainfo=dict(classes=(...)) in every data set to those of your '
                'own.'
            )


def check_masks(cfg: Config, context: Context) -> None:
    """Check that the patches which SimMIM hides divide the images of the training, if its config tells their size."""
    size, model = input_size(cfg), context.model
    if not isinstance(model, SimMIM) or size is None or 'train' not in context.splits:
        return
    side = model.mask_patch_size
    if size[0] % side or size[1] % side:
        rows, columns = (max(round(length / side), 1) * side for length in size)
        raise UserError(
            f'model.mask_patch_size={side} does not divide the images of the training, {size[0]} x {size[1]} pixels. '
            f'Crop them to {rows} x {columns} in train_dataloader.dataset.pipeline, or pass --cfg-options '
            f'model.mask_patch_size with a divisor of both sides and a multiple of {model.backbone.patch_size}.'
        )


def check_window_size(cfg: Config, context: Context) -> None:
    """Check that the window of ``--window-size`` fits every stage."""
    for hook in cfg.get('custom_hooks') or []:
        if hook.get('type') == 'swinv2_mm.WindowSizeHook':
            for backbone, own in set_window_size(context.model, hook.get('window_size')):
                backbone.set_window_size(own)
