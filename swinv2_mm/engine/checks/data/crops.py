"""What leaves the pipeline of a pre-training: pictures of one size, with the channels and sides that SimMIM takes."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from torch import Tensor

from swinv2_mm.engine.census.sizes import varied_samples
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.config.parts import each
from swinv2_mm.errors import UserError
from swinv2_mm.models.simmim import SimMIM

_CROP = "dict(type='swinv2_mm.RandomResizedCrop', scale=({columns}, {rows}))"


def check_crops(cfg: Config, context: Context) -> None:
    """Send a few pictures, first those of the most different sizes, through the pipeline and the preprocessor."""
    model = context.model
    for key, hook in each(cfg.get('custom_hooks'), 'custom_hooks'):
        if hook.get('type') == 'swinv2_mm.ReconstructionHook' and not isinstance(model, SimMIM):
            raise UserError(f'{key}: ReconstructionHook draws what SimMIM paints, and the model is {type(model).__name__}.')
    if not isinstance(model, SimMIM) or 'train' not in context.splits:
        return
    config = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {'type': 'BaseDataPreprocessor'}
    preprocessor: Any = MODELS.build(deepcopy(config))
    for key, dataset in context.datasets.items():
        first: tuple[str, Any] | None = None
        for path, sample in varied_samples(dataset) if key.startswith('train_') else ():
            shape = _shape(sample, path, key)
            first = first or (path, shape)
            if shape[1:] != first[1][1:]:
                raise UserError(
                    f'{key}.pipeline: pictures of several sizes leave it, {_size(*first)} and {_size(path, shape)}. The '
                    'smaller would be padded, and the model would learn to paint the padding. Add '
                    f'{_crop(first[1], model.mask_patch_size)} to the pipeline.'
                )
            _check_shape(preprocessor, sample, path, key, model)


def _shape(sample: Any, path: str, key: str) -> tuple[int, int, int]:
    inputs = sample.get('inputs') if isinstance(sample, dict) else None
    if not isinstance(inputs, Tensor) or inputs.ndim != 3:
        raise UserError(f"{key}.pipeline gives no inputs for {path}: end it with dict(type='swinv2_mm.PackImages').")
    channels, rows, columns = inputs.shape
    return channels, rows, columns


def _check_shape(preprocessor: Any, sample: dict, path: str, key: str, model: SimMIM) -> None:
    """Check what the model gets: the preprocessor may change the channels, and pads where it is told to."""
    shape = _shape(sample, path, key)
    told = f'{key}: {path} leaves the pipeline with {shape[0]} channels and {shape[1]} x {shape[2]} pixels'
    try:
        images = preprocessor(pseudo_collate([deepcopy(sample)]), True)['inputs']
        channels, rows, columns = (images[0] if isinstance(images, list) else images).shape[-3:]
    except Exception as error:  # whatever a preprocessor asserts
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(f'{told}, which model.data_preprocessor does not take: {reason}') from error
    if channels != model.channels:
        raise UserError(
            f"{told}, and model.backbone.in_channels={model.channels}. Set color_type of its LoadImageFromFile to 'color' "
            "(3 channels), 'grayscale' (1) or 'unchanged' (those of the file), or in_channels to what all pictures have."
        )
    if rows % model.mask_patch_size or columns % model.mask_patch_size:
        raise UserError(
            f'{told}, which model.mask_patch_size={model.mask_patch_size} does not divide. Add '
            f'{_crop(shape, model.mask_patch_size)} to the pipeline.'
        )


def _crop(shape: tuple[int, int, int], side: int) -> str:
    """A transform for crops of about this shape, of sides that can be hidden."""
    rows, columns = (max(round(length / side), 1) * side for length in shape[1:])
    return _CROP.format(columns=columns, rows=rows)


def _size(path: str, shape: tuple[int, int, int]) -> str:
    return f'{shape[1]} x {shape[2]} ({path})'
