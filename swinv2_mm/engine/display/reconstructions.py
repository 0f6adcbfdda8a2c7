"""What a SimMIM model paints behind its masks: a picture of a few images, every few epochs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.models.simmim import SimMIM, draw_mask, local_statistics
from swinv2_mm.registry import HOOKS

_GAP = 4  # pixels between the images
_GREY = 128


@HOOKS.register_module()
class ReconstructionHook(Hook):
    """Draw images of the training, masked, painted and whole, into ``work_dir/reconstructions``.

    The images and their masks are the same each time, and the training's random numbers stay as they are. The middle
    column has what the model painted in the hidden squares, and the image elsewhere; where targets are normalised
    locally, mean and contrast around each pixel are those of the image.

    Args:
        interval: Epochs, or iterations of a loop by iterations, between two pictures. There is one of the first weights
            and one of the last, too.
        num_pictures: Images in a picture.
    """

    # Before the hook that seeds an epoch, so that nothing is drawn between that and the epoch.
    priority = 'VERY_LOW'

    def __init__(self, interval: int = 1, num_pictures: int = 8) -> None:
        for name, value in {'interval': interval, 'num_pictures': num_pictures}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f'{name}={value!r} of ReconstructionHook must be a whole number from 1.')
        self.interval = interval
        self.num_pictures = num_pictures
        self._images: Tensor | None = None

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
        if is_main_process():
            _write(picture, file)
            runner.logger.info(f'reconstructions (masked, painted, whole): {file}')

    def _picture(self, runner: Runner) -> np.ndarray:
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, SimMIM):
            raise TypeError(f'ReconstructionHook draws what SimMIM paints, and the model is {type(model).__name__}.')
        if self._images is None:
            dataset: Any = runner.train_dataloader.dataset
            number = min(self.num_pictures, len(dataset))
            with _own_random_numbers():
                self._images = pseudo_collate([dataset[i * len(dataset) // number] for i in range(number)])['inputs']
        images = model.data_preprocessor({'inputs': list(self._images)})['inputs']
        side = model.mask_patch_size
        grid = images.shape[-2] // side, images.shape[-1] // side
        was_training = model.training
        model.eval()
        try:
            with _own_random_numbers(), torch.no_grad():
                mask = draw_mask(len(images), grid, model.mask_ratio).to(images.device)
                painted = model(images, mask=mask)
        finally:
            model.train(was_training)
        picture = reconstruction(images, painted, mask, model)
        is_bgr = images.shape[1] == 3 and not (runner.cfg.model.get('data_preprocessor') or {}).get('bgr_to_rgb')
        return picture[..., ::-1] if is_bgr else picture


def _by_epoch(runner: Runner) -> bool:
    return isinstance(runner.train_loop, EpochBasedTrainLoop)


def reconstruction(images: Tensor, painted: Tensor, mask: Tensor, model: SimMIM) -> np.ndarray:
    """Rows of masked, painted and whole images.

    Args:
        images: As the model gets them, ``(B, C, H, W)``.
        painted: What it paints, of the same shape.
        mask: ``(B, rows, columns)``, True where a square is hidden.

    Returns:
        ``(B * H, 3 * W, 3)`` and gaps, uint8, in the order of channels that the model has. Of images with other than
        three channels the first is drawn.
    """
    images = images.float()
    if model.norm_target is not None:
        mean, deviation = local_statistics(images, model.norm_target)
        painted = painted * deviation + mean
    hidden = mask.repeat_interleave(model.mask_patch_size, 1).repeat_interleave(model.mask_patch_size, 2)[:, None]
    whole, painted = _file_values(images, model), _file_values(painted, model)
    if whole.amax() > 256:  # of more than eight bits
        whole, painted = (values * (255 / whole.amax()) for values in (whole, painted))
    grey = torch.full_like(whole, _GREY)
    columns = torch.where(hidden, grey, whole), torch.where(hidden, painted, whole), whole
    rows = torch.cat([torch.nn.functional.pad(column, (0, _GAP, 0, _GAP), value=255) for column in columns], dim=3)
    return torch.cat([*rows], dim=1).permute(1, 2, 0).clamp(0, 255).round().byte().cpu().numpy()


def _file_values(images: Tensor, model: SimMIM) -> Tensor:
    """Undo the preprocessor's normalisation, ``(B, 3, H, W)``."""
    preprocessor: Any = model.data_preprocessor
    mean, std = getattr(preprocessor, 'mean', None), getattr(preprocessor, 'std', None)
    if mean is not None and std is not None:
        images = images * std + mean
    return images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)


@contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Seed all generators for a while, and give the training its own back."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


def _write(picture: np.ndarray, file: Path) -> None:
    """Write a PNG file of RGB, which appears complete or not at all."""
    from PIL import Image

    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        Image.fromarray(np.ascontiguousarray(picture)).save(partial, format='png')
