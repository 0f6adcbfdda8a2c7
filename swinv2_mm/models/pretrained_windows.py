"""The pretrained windows travel with the weights: they are saved in the state_dict, and loading weights sets them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor

from swinv2_mm.models.arguments import is_sequence, windows_per_stage
from swinv2_mm.models.kernels.choose import is_ordinary

Pair = tuple[int, int]


class WithPretrainedWindows(BaseModule):
    """A backbone whose weights know the window of their first pre-training, the normaliser of the position bias."""

    stages: Any  # of blocks with a WindowAttention each
    pretrained_windows: Tensor

    def _first_pretrained_windows(self, given: Any, windows: list[Pair]) -> list[Pair]:
        """The pretrained windows of a new backbone: those given, those of the checkpoint of ``init_cfg``, or its own.

        Args:
            given: ``pretrained_window_sizes`` of the constructor, which the weights must agree with, or None.
            windows: The windows in use, per stage.
        """
        self.windows_given, self._windows_unknown = given is not None, ''
        if given is None:
            loading = filter(loads_backbone, self.init_cfg if is_sequence(self.init_cfg) else [self.init_cfg])
            if cfg := next(loading, None):
                told, self._windows_unknown = WEIGHT_INITIALIZERS.build(cfg).told_windows()
                given = told and told[: len(windows)]
        first = windows
        if given is not None:
            pairs = windows_per_stage('pretrained_window_sizes', given, len(windows), minimum=0)
            first = [(ph or wh, pw or ww) for (ph, pw), (wh, ww) in zip(pairs, windows, strict=True)]
        self.register_buffer('pretrained_windows', torch.tensor(first))
        return first

    def _check_windows_known(self) -> None:
        if self._windows_unknown:
            raise RuntimeError(
                f'pretrained_window_sizes of the backbone was left to the weights, which have not told it: '
                f'{self._windows_unknown}'
            )

    @property
    def pretrained_window_sizes(self) -> tuple[Pair, ...]:
        """The normaliser of the position bias, per stage; it follows the weights that are loaded."""
        return tuple(stage.blocks[0].attn.pretrained_window_size for stage in self.stages)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:  # the windows in use: code that averages or empties buffers may have changed the buffer
            destination[f'{prefix}pretrained_windows'] = torch.tensor(
                self.pretrained_window_sizes, device=self.pretrained_windows.device
            )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: Any, missing_keys: Any, *rest: Any
    ) -> None:
        """Load as torch does; take over the pretrained windows, or refuse them if they contradict those given."""
        key = f'{prefix}pretrained_windows'
        told = state_dict.pop(key, None)  # torch passes a copy of the dict, which may be edited
        if told is not None and is_ordinary(told) and not told.is_meta and len(told) >= len(self.stages):
            self._take_windows([tuple(pair) for pair in told[: len(self.stages)].tolist()], prefix)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *rest)
        if key in missing_keys:  # weights of other code bases and of early versions have no such entry
            missing_keys.remove(key)

    def _take_windows(self, told: Sequence[Pair], prefix: str) -> None:
        own = self.pretrained_window_sizes
        if self.windows_given and own != tuple(told):
            raise ValueError(
                f'{prefix}pretrained_window_sizes={_plain(own)} of the model contradicts the weights that are loaded, '
                f'whose position bias was trained with {_plain(told)}. Set it to that, or leave it out: the weights '
                'know it. window_size may be any.'
            )
        for stage, pair in zip(self.stages, told, strict=True):
            for block in stage.blocks:
                block.attn.pretrained_window_size = pair
        with torch.inference_mode(False):
            self.pretrained_windows = torch.tensor(told, device=self.pretrained_windows.device)
        self._windows_unknown = ''


def loads_backbone(cfg: Any) -> bool:
    """Whether an initialisation loads a checkpoint that names its windows."""
    kind = WEIGHT_INITIALIZERS.get(cfg['type']) if isinstance(cfg, dict) and 'type' in cfg else None
    return hasattr(kind, 'told_windows')


def _plain(windows: Sequence[Pair]) -> list[Any]:
    """Square windows as numbers, as people write them."""
    return [rows if rows == columns else (rows, columns) for rows, columns in windows]
