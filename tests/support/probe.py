"""A hook that starts a training from random weights, and notes the features at the start of each run."""

from typing import ClassVar

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch import Tensor, nn


@HOOKS.register_module()
class Probe(Hook):
    """Give the backbone random values before a training starts; note its state in front of every run.

    A fresh block is the identity, and what is trained for one iteration still nearly is: whatever went wrong inside of
    it would show nowhere.

    Attributes:
        seen: Of every run since the list was cleared, the pretrained windows and the features of :func:`picture`.
    """

    priority = 'LOWEST'  # behind EMAHook, which tests with the average
    seen: ClassVar[list] = []

    def before_train(self, runner: object) -> None:
        if not (runner._resume or runner._load_from):
            randomize(runner.model.backbone)
        self.note(runner)

    def before_test_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        if batch_idx == 0:
            self.note(runner)

    def note(self, runner: object) -> None:
        backbone = runner.model.backbone
        self.seen.append((backbone.pretrained_window_sizes, features(backbone)))


def randomize(module: nn.Module) -> nn.Module:
    """Add noise to every parameter, as large as its fan-in lets it be."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def picture() -> Tensor:
    """An image whose maps are no multiple of the windows, ``(1, 3, 72, 104)``."""
    return torch.randn(1, 3, 72, 104, generator=torch.Generator().manual_seed(1))


def features(backbone: nn.Module) -> tuple[Tensor, ...]:
    """What a backbone makes of :func:`picture`; it stays in the mode that it was in."""
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        maps = backbone(picture())
    backbone.train(training)
    return maps
