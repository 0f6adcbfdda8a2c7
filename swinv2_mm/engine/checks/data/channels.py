"""Channels of the images: what the pipelines load, what the preprocessor normalises, and what the backbone takes."""

from typing import Any

from mmengine.config import Config

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.config.parts import nested
from swinv2_mm.errors import UserError

# What a color_type of mmcv's loading gives; 'unchanged' gives what the file has.
_LOADED = {'color': 3, 'color_ignore_orientation': 3, 'grayscale': 1, 'grayscale_ignore_orientation': 1}
_COLOR_TYPES = {1: "'grayscale'", 3: "'color'"}


def check_channels(cfg: Config, context: Context) -> None:
    """Check that loading, preprocessor and a SwinV2 backbone agree on the number of channels."""
    backbone = cfg.model.get('backbone')
    if not isinstance(backbone, dict) or backbone.get('type') != 'swinv2_mm.SwinTransformerV2':
        return
    takes = backbone.get('in_channels', 3)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    key = 'model.data_preprocessor'
    mean = preprocessor.get('mean')
    values = len(mean) if isinstance(mean, list | tuple) else 1
    if values > 1 and values != takes:
        raise UserError(
            f'model.backbone.in_channels={takes} does not match {key}.mean, which has {values} values. '
            f'{_normalising(key, takes)}'
        )
    if values not in (1, 3) and str(preprocessor.get('type')).split('.')[-1] != 'SegDataPreProcessor':
        raise UserError(
            f'{key}.mean has {values} values; outside of MMSegmentation, a preprocessor takes one for all channels, or '
            f'three. {_normalising(key, takes)} Or, for a value each: mean=None and std=None, and behind the loading '
            "in every pipeline dict(type='Normalize', mean=[…], std=[…], to_rgb=False)."
        )
    swap = next((name for name in ('bgr_to_rgb', 'rgb_to_bgr') if preprocessor.get(name)), None)
    if swap and takes != 3:
        raise UserError(
            f'{key}.{swap}=True swaps the channels of colour images, and model.backbone.in_channels={takes}. Pass '
            f'--cfg-options {key}.{swap}=False'
        )
    for split in context.splits:
        for place, part in nested(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            _check_loading(part, place, takes)


def _normalising(key: str, channels: Any) -> str:
    """How to normalise images of so many channels."""
    swap = '' if channels == 3 else f' {key}.bgr_to_rgb=False'
    return f"Pass, with values of your data, --cfg-options '{key}.mean=[110.]' '{key}.std=[60.]'{swap}"


def _check_loading(part: Any, place: str, takes: Any) -> None:
    """Check that a transform that loads images, if this is one, gives what the backbone takes."""
    if not isinstance(part, dict) or str(part.get('type')).split('.')[-1] != 'LoadImageFromFile':
        return
    color_type = part.get('color_type', 'color')
    loads = _LOADED.get(color_type, takes)
    if loads != takes:
        wanted = _COLOR_TYPES.get(takes, "'unchanged'")
        raise UserError(
            f'{place} loads images of {loads} channel{"s" if loads > 1 else ""} (color_type={color_type!r}), and '
            f'model.backbone.in_channels={takes}. Set color_type={wanted} there, or in_channels={loads}.'
        )
