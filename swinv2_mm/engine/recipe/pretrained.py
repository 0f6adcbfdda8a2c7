"""Pretrained weights of any code base, loaded completely or not at all: ``type='swinv2_mm.Pretrained'``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from swinv2_mm.checkpoints.adapt import adapt_channels, adapt_patch
from swinv2_mm.checkpoints.geometry import read_geometry
from swinv2_mm.checkpoints.load import as_state, fetch, pairs, plain, windows_of
from swinv2_mm.engine.mmengine_internals import note_initialised
from swinv2_mm.engine.saving.matching import misfits
from swinv2_mm.errors import UserError
from swinv2_mm.registry import WEIGHT_INITIALIZERS


@WEIGHT_INITIALIZERS.register_module(name='Pretrained')
class Pretrained:
    """Fill a backbone from a checkpoint of any known layout; fail if any of its parameters would stay random.

    The checkpoint is converted when it is first used on a machine. The patch embedding is adapted to the backbone's
    ``in_channels`` and ``patch_size`` with a warning. Output norms that the checkpoint does not have start afresh.

    Args:
        checkpoint: A path, a URL, a released name such as ``swinv2_tiny_patch4_window8_256``, or ``hf://owner/name``.
        prefix: The prefix of the backbone's keys, such as ``'backbone.'``; None detects it.
        source: The layout; None detects it.
        ema: Load the running average of the weights.
        input_size: ``(rows, columns)`` of the images; the log then states the cost of padding them to windows. The
            tools fill it in from the config.

    Raises:
        UserError: The checkpoint cannot be fetched, read or converted, leaves a parameter unfilled, or was trained with
            other pretrained windows than the backbone was built with.
    """

    def __init__(
        self,
        checkpoint: str,
        prefix: str | None = None,
        source: str | None = None,
        ema: bool = False,
        input_size: Sequence[int] | None = None,
    ) -> None:
        self.checkpoint = str(checkpoint)
        self.options = dict(layout=source, prefix=prefix, ema=ema)
        self.input_size = input_size

    def told_windows(self) -> tuple[list | None, str]:
        """Read the pretrained windows of the checkpoint, per stage, for a backbone that is given none.

        Returns:
            The windows and an empty text; or None and the reason: the checkpoint is missing, or does not contain them.
            The backbone can still be built, to be filled from another file.
        """
        remedy = 'give the backbone its pretrained_window_sizes, the windows that the weights were first trained with.'
        try:
            known = windows_of(self.checkpoint, **self.options)
        except UserError as error:
            return None, f'{error} If it is gone for good: {remedy}'
        if known is None:
            return None, f'{self.checkpoint} does not tell its pretrained windows. {remedy.capitalize()}'
        return plain(known), ''

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the checkpoint's backbone.

        Raises:
            UserError: The checkpoint cannot be fetched or read.
        """
        weights, meta = fetch(self.checkpoint, **self.options)
        geometry = read_geometry(weights)
        windows = meta['window_size'] or meta['pretrained_window_sizes']
        return dict(
            geometry.arguments(),
            out_indices=tuple(range(len(geometry.depths))),
            **(dict(window_size=windows) if windows else {}),
        )

    def __call__(self, module: nn.Module) -> None:
        self._check_module(module)
        weights, meta = fetch(self.checkpoint, **self.options)
        known = pairs(meta['pretrained_window_sizes'], len(meta['depths']))
        weights = weights | as_state(known and known[: len(module.pretrained_window_sizes)])
        _adapt_patch_embedding(module, weights, self.checkpoint)
        new = self._check_size(module, weights)
        self._check_windows(module, known)
        wanted = module.state_dict()
        module.load_state_dict({key: tensor for key, tensor in weights.items() if key in wanted}, strict=False)
        note_initialised(module, f'swinv2_mm.Pretrained: loaded from {self.checkpoint}')
        print_log(
            f'{self.checkpoint} ({meta["source_layout"]}, SHA-256 {meta["source_sha256"][:12]}): all weights loaded'
            f'{f", {new} start afresh" if new else ""}; window {plain(module.window_size)}, pretrained window '
            f'{plain(module.pretrained_window_sizes)}{"" if known else " (as configured: the file does not tell)"}'
            f'{self._padding(module)}',
            logger='current',
        )

    def _check_module(self, module: nn.Module) -> None:
        if not hasattr(module, 'pretrained_window_sizes') or not hasattr(module, 'patch_embed'):
            raise UserError(
                f"init_cfg=dict(type='swinv2_mm.Pretrained') belongs into a swinv2_mm.SwinTransformerV2, "
                f'as model.backbone.init_cfg, not into a {type(module).__name__}.'
            )

    def check(self, module: nn.Module) -> None:
        """Check that the checkpoint can be fetched and fits a backbone, which may be on the meta device.

        Raises:
            UserError: As when it is loaded.
        """
        weights, meta = fetch(self.checkpoint, **self.options)
        key = 'patch_embed.proj.weight'
        self._check_size(module, {**weights, key: module.state_dict()[key]})
        self._check_windows(module, pairs(meta['pretrained_window_sizes'], len(meta['depths'])))

    def _check_windows(self, module: nn.Module, known: tuple | None) -> None:
        own = module.pretrained_window_sizes
        if known is None and not module.windows_given:
            raise UserError(self.told_windows()[1])
        if known is not None and module.windows_given and own != known[: len(own)]:
            raise UserError(
                f'pretrained_window_sizes={plain(module.pretrained_window_sizes)} of the backbone contradicts '
                f'{self.checkpoint}, whose position bias was trained for {plain(known)}. Set '
                f'pretrained_window_sizes={plain(known)}, or leave it out; window_size may be any.'
            )

    def _check_size(self, module: nn.Module, weights: dict[str, Tensor]) -> str:
        """Return the output norms that the weights lack."""
        wanted = module.state_dict()
        new = sorted({key.split('.')[0] for key in wanted if key.startswith('norm') and key not in weights})
        faults = misfits(weights, {key: t for key, t in wanted.items() if key.split('.')[0] not in new})
        stages = {key.split('.')[1] for key in weights if key.startswith('stages.')}
        ours = {key.split('.')[1] for key in wanted if key.startswith('stages.')}
        if faults:
            raise UserError(
                f'{self.checkpoint} does not fit the backbone: {faults}. It is of another size: compare '
                'arch, or embed_dims, depths and num_heads.'
            )
        blocks = {key for key in weights if key.startswith('stages.') and key not in wanted}
        if blocks and stages == ours:
            raise UserError(
                f'{self.checkpoint} does not fit the backbone: {len(blocks)} of its tensors have no place '
                f'in it, such as {min(blocks)}. Compare arch, depths and qkv_bias.'
            )
        return ', '.join(new)

    def _padding(self, module: nn.Module) -> str:
        if not self.input_size:
            return ''
        costs = ' '.join(f'{cost:.2f}' for cost in module.padding_cost(tuple(self.input_size)))
        return f'; at {self.input_size[0]}x{self.input_size[1]} windows compute {costs} tokens per real one, by stage'


def _adapt_patch_embedding(module: nn.Module, weights: dict[str, Tensor], checkpoint: str) -> None:
    key = 'patch_embed.proj.weight'
    old, wanted = weights[key].shape, module.state_dict()[key].shape
    changes = []
    if old[1] != wanted[1]:
        weights[key] = adapt_channels(weights[key].float(), wanted[1])
        changes.append(f'from {old[1]} to {wanted[1]} channels')
    if old[2] != wanted[2]:
        weights[key] = adapt_patch(weights[key], wanted[2])
        changes.append(f'from patches of {old[2]} pixels to {wanted[2]}')
    if changes:
        print_log(
            f'{checkpoint}: the patch embedding was adapted {" and ".join(changes)}; fine-tune it.',
            logger='current',
            level=logging.WARNING,
        )
