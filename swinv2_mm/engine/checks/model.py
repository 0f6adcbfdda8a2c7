"""Build the model in the dry run, without memory for its weights, and hold it against the data sets and the window."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import nn

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import find_class, with_key
from swinv2_mm.engine.config.parts import initializers, nested
from swinv2_mm.engine.recipe.window_size import set_window_size
from swinv2_mm.errors import UserError, listed


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
    modules = {f'model.{name}': module for name, module in context.model.named_modules()}
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
    spelt_out = {key for key, node in nested(cfg.model, 'model') if isinstance(node, dict) and 'num_classes' in node}
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


def check_window_size(cfg: Config, context: Context) -> None:
    """Check that the window of ``--window-size`` fits every stage."""
    for hook in cfg.get('custom_hooks') or []:
        if hook.get('type') == 'swinv2_mm.WindowSizeHook':
            for backbone, own in set_window_size(context.model, hook.get('window_size')):
                backbone.set_window_size(own)
