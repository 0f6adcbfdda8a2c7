"""Channels of the images: what the pipelines load, what the preprocessor normalises, and what the backbone takes."""

from collections.abc import Sequence
from typing import Any

from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.config.parts import nested
from swinv2_mm.errors import UserError

# What a color_type of mmcv's loading gives; 'unchanged' gives what the file has.
_LOADED = {'color': 3, 'color_ignore_orientation': 3, 'grayscale': 1, 'grayscale_ignore_orientation': 1}
_FRAMEWORKS = ('mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'mmengine', 'swinv2_mm')
_COLOR_TYPES = {1: "'grayscale'", 3: "'color'"}


def check_channels(cfg: Config, context: Context) -> None:
    """Check that loading, preprocessor and a SwinV2 backbone agree on the number of channels."""
    model = cfg.model.get('module') or cfg.model  # inside of test-time augmentation
    backbone = model.get('backbone')
    if not isinstance(backbone, dict) or backbone.get('type') != 'swinv2_mm.SwinTransformerV2':
        return
    takes = backbone.get('in_channels', 3)
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    key = 'model.data_preprocessor' if model.get('data_preprocessor') else 'data_preprocessor'
    kind = str(preprocessor.get('type')).split('.')[-1]
    segments = kind == 'SegDataPreProcessor' or cfg.get('default_scope') == 'mmpretrain'  # any number of means
    # MMPretrain swaps three channels alone, by another argument.
    unswap = '' if takes == 3 or cfg.get('default_scope') == 'mmpretrain' else f' {key}.bgr_to_rgb=False'
    values, spread = (_length(preprocessor.get(name)) for name in ('mean', 'std'))
    if values != spread:
        raise UserError(f'{key}.mean has {values} values, and std {spread}. {_normalising(key, unswap)}')
    if values > 1 and values != takes:
        raise UserError(
            f'model.backbone.in_channels={takes} does not match {key}.mean, which has {values} values. '
            f'{_normalising(key, unswap)}'
        )
    if values not in (1, 3) and not segments:
        raise UserError(
            f'{key}.mean has {values} values; outside of MMSegmentation, a preprocessor takes one for all channels, or '
            f'three. {_normalising(key, unswap)} Or, for a value each: mean=None and std=None, and behind the loading '
            "in every pipeline dict(type='Normalize', mean=[…], std=[…], to_rgb=False)."
        )
    swap = next((name for name in ('bgr_to_rgb', 'rgb_to_bgr') if preprocessor.get(name)), None)
    if swap and takes != 3 and not segments:  # MMSegmentation swaps three channels alone
        raise UserError(
            f'{key}.{swap}=True swaps the channels of colour images, and model.backbone.in_channels={takes}. Pass '
            f'--cfg-options {key}.{swap}=False'
        )
    for split in context.splits:
        for place, part in nested(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            if place.endswith('.pipeline') and isinstance(part, list | tuple) and not _recolours(part):
                for index, transform in enumerate(part):
                    # One channel becomes as many as the means have.
                    _check_loading(transform, f'{place}.{index}', takes, 1 if segments and values == takes else takes)


def _normalising(key: str, unswap: str) -> str:
    """How to normalise images of other channels; ``unswap`` is an option that goes along."""
    return f"Pass, with values of your data, --cfg-options '{key}.mean=[110.]' '{key}.std=[60.]'{unswap}"


def _length(values: Any) -> int:
    return len(values) if isinstance(values, list | tuple) else 1


def _recolours(pipeline: Sequence) -> bool:
    """Whether a transform may change the number of channels: one that is for that, or of a class of the user's."""
    kinds = [part.get('type') for part in pipeline if isinstance(part, dict)]
    found = [TRANSFORMS.get(kind) if isinstance(kind, str) else kind for kind in kinds]
    return any(
        kind is None or kind.__name__ == 'RGB2Gray' or kind.__module__.split('.')[0] not in _FRAMEWORKS
        for kind in found
    )


def _check_loading(part: Any, place: str, takes: Any, also: Any) -> None:
    """Check that a transform that loads images, if this is one, gives what the backbone takes."""
    kind = str(part.get('type')).split('.')[-1] if isinstance(part, dict) else ''
    if kind != 'LoadImageFromFile' or part.get('imdecode_backend', 'cv2') not in ('cv2', 'turbojpeg', 'pillow'):
        return
    color_type = part.get('color_type', 'color')
    loads = _LOADED.get(color_type, takes)
    if loads not in (takes, also):
        wanted = _COLOR_TYPES.get(takes, "'unchanged'")
        raise UserError(
            f'{place} loads images of {loads} channel{"s" if loads > 1 else ""} (color_type={color_type!r}), and '
            f'model.backbone.in_channels={takes}. Set color_type={wanted} there, or in_channels={loads}.'
        )
