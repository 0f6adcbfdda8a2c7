"""What a SimMIM model paints behind its masks: a picture of a few images, every few epochs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.engine.display.loading import swaps_channels
from swinv2_mm.models.simmim import SimMIM, draw_mask, local_statistics
from swinv2_mm.registry import HOOKS

_GAP = 4  # pixels between the images
_GREY = 128
_LINE = 14  # pixels of a line of text
_COLUMNS = 'masked', 'painted', 'image'
_NORMALISED = 'painted with local mean and contrast of the image'


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw images of the training, masked, painted and whole, into ``work_dir/reconstructions``.

    The images and their masks are the same each time, and the training's random numbers stay as they are. The middle
    column has what the model painted in the hidden squares, and the image elsewhere; where targets are normalised
    locally, mean and contrast around each pixel are those of the image, and the picture says so. A picture that cannot
    be written is only a warning: it never stops a training.

    Args:
        interval: Epochs, or iterations of a loop by iterations, between two pictures. There is one of the first weights
            and one of the last, too.
        num_pictures: Images in a picture.

    Raises:
        ValueError: They are no whole numbers from 1.
        TypeError: The model is no SimMIM.
    """

    # Before the hook that seeds an epoch, so that nothing is drawn between that and the epoch.
    priority = 'VERY_LOW'

    def __init__(self, interval: int = 1, num_pictures: int = 8) -> None:
        for name, value in {'interval': interval, 'num_pictures': num_pictures}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name}={value!r} of ReconstructionHook must be a whole number from 1.')
        self.interval = interval
        self.num_pictures = num_pictures
        self._chosen: tuple[list[Tensor], Tensor] | None = None  # images, and their masks

    def before_train(self, runner: Runner) -> None:
        if runner.iter == 0:
            self._draw(runner, 0)

    def after_train_epoch(self, runner: Runner) -> None:
        if _by_epoch(runner) and self._is_due(runner.epoch + 1, runner.max_epochs):
            self._draw(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not _by_epoch(runner) and self._is_due(runner.iter + 1, runner.max_iters):
            self._draw(runner, runner.iter + 1)

    def _is_due(self, done: int, last: int) -> bool:
        return done % self.interval == 0 or done == last

    def _draw(self, runner: Runner, number: int) -> None:
        kind = 'epoch' if _by_epoch(runner) else 'iter'
        file = Path(runner.work_dir, 'reconstructions', f'{kind}_{number}.png')
        picture = self._picture(runner)  # by all processes: with FSDP2 they hold parts of the weights
        if not is_main_process():
            return
        try:
            _write(picture, file)
        except OSError as error:
            runner.logger.warning(f'{file} was not written: {error}')
        else:
            runner.logger.info(f'reconstructions (masked, painted, whole): {file}')

    def _picture(self, runner: Runner) -> np.ndarray:
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, SimMIM):
            raise TypeError(f'ReconstructionHook draws what SimMIM paints, and the model is {type(model).__name__}.')
        device = next(model.parameters()).device
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        try:
            with _own_random_numbers(device), torch.no_grad():
                if self._chosen is None:
                    self._chosen = self._choose(runner.train_dataloader.dataset, model)
                images, mask = self._chosen[0], self._chosen[1].to(device)
                images = model.data_preprocessor({'inputs': list(images)})['inputs']
                painted = model(images, mask=mask)
        finally:
            for module, training in modes:
                module.training = training
        picture = reconstruction(images, painted, mask, model)
        picture = picture if swaps_channels(runner.cfg) or images.shape[1] < 3 else picture[..., ::-1]
        return _with_titles(picture, model.norm_target is not None)

    def _choose(self, dataset: Any, model: SimMIM) -> tuple[list[Tensor], Tensor]:
        number = min(self.num_pictures, len(dataset))
        images = pseudo_collate([dataset[i * len(dataset) // number] for i in range(number)])['inputs']
        rows, columns = (side // model.mask_patch_size for side in images[0].shape[-2:])
        return images, draw_mask(number, (rows, columns), model.mask_ratio)


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def reconstruction(images: Tensor, painted: Tensor, mask: Tensor, model: SimMIM) -> np.ndarray:
    """Rows of masked, painted and whole images.

    Args:
        images: As the model gets them, ``(B, C, H, W)``.
        painted: What it paints, of the same shape.
        mask: ``(B, rows, columns)``, True where a square is hidden.
        model: It says how the images were normalised.

    Returns:
        ``(B * H, 3 * W, 3)`` and gaps, uint8, in the order of channels that the model has. Of images with more than
        three channels the first three are drawn; two are drawn as the first two.
    """
    images = images.float()
    if model.norm_target is not None:
        mean, deviation = local_statistics(images, model.norm_target)
        painted = painted * deviation + mean
    hidden = mask.repeat_interleave(model.mask_patch_size, 1).repeat_interleave(model.mask_patch_size, 2)[:, None]
    whole, painted = (_as_loaded(each, model) for each in (images, painted))
    low, factor = _brightness(whole)
    whole, painted = ((each - low) * factor for each in (whole, painted))
    columns = torch.where(hidden, _GREY, whole), torch.where(hidden, painted, whole), whole
    rows = torch.cat([F.pad(column, (0, _GAP, 0, _GAP), value=255) for column in columns], dim=3)
    return torch.cat([*rows], dim=1).permute(1, 2, 0).clamp(0, 255).round().byte().cpu().numpy()


def _as_loaded(images: Tensor, model: SimMIM) -> Tensor:
    """Undo the preprocessor's normalisation, and take three channels for eyes, ``(B, 3, H, W)``."""
    preprocessor: Any = model.data_preprocessor
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is not None and std is not None:
        images = images * std + mean
    if images.shape[1] == 1:
        return images.expand(-1, 3, -1, -1)
    return F.pad(images, (0, 0, 0, 0, 0, 1))[:, :3] if images.shape[1] == 2 else images[:, :3]


def _brightness(images: Tensor) -> tuple[float, float]:
    """What is black, and by what to multiply, for values from 0 to 255: as ``display.loading.for_eyes`` does."""
    low, high = images.min().item(), images.max().item()
    if low < -0.5 or high > 255.5:  # not by rounding
        return low, 255 / max(high - low, 1e-12)
    return 0.0, 255.0 if high <= 1 else 1.0


@contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """Seed all generators for a while, and give the training its own back."""
    kept = random.getstate(), np.random.get_state()
    # Of all the GPUs of a machine torch would warn.
    with torch.random.fork_rng([device] if device.type == 'cuda' else []):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _with_titles(picture: np.ndarray, normalised: bool) -> np.ndarray:
    """Put the names of the columns above them, and how the middle one came about."""
    from PIL import Image, ImageDraw

    strip = Image.new('RGB', (picture.shape[1], _LINE * (1 + normalised)), 'white')
    draw = ImageDraw.Draw(strip)
    for column, title in enumerate(_COLUMNS):
        draw.text((column * picture.shape[1] // len(_COLUMNS), 1), title, fill='black')
    if normalised:
        draw.text((0, 1 + _LINE), _NORMALISED, fill='black')
    return np.concatenate([np.asarray(strip), picture])


def _write(picture: np.ndarray, file: Path) -> None:
    """Write a PNG file of RGB, which appears complete or not at all."""
    from PIL import Image

    with replacing(file) as partial:
        Image.fromarray(np.ascontiguousarray(picture)).save(partial, format='png')
