"""Validation and test at another window than the training's."""

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


def set_window_size(model: nn.Module, window_size: int | Sequence[int | Sequence[int]]) -> list[tuple]:
    """Set the window of every SwinV2 backbone of a model; return the backbones, each with its former windows.

    Raises:
        UserError: The model has no SwinV2 backbone, or the window does not fit its stages.
    """
    backbones: list[Any] = [module for module in model.modules() if hasattr(module, 'set_window_size')]
    if not backbones:
        raise UserError(f'window_size={window_size}: the model has no swinv2_mm.SwinTransformerV2.')
    had = [(backbone, backbone.window_size) for backbone in backbones]
    for backbone in backbones:
        try:
            backbone.set_window_size(window_size)
        except ValueError as error:
            raise UserError(f'window_size={window_size}: {error}') from error
    return had


@HOOKS.register_module()
class WindowSizeHook(Hook):
    """Run validation and test at another window, as ``SwinTransformerV2.set_window_size`` takes it, and reset it."""

    def __init__(self, window_size: int | Sequence[int | Sequence[int]]) -> None:
        self.window_size = window_size
        self._trained: list[tuple] = []  # the backbones and their windows in training

    def before_val(self, runner: Runner) -> None:
        self._trained = set_window_size(runner.model, self.window_size)

    def after_val(self, runner: Runner) -> None:
        for backbone, window_size in self._trained:
            backbone.set_window_size(window_size)

    before_test, after_test = before_val, after_val
