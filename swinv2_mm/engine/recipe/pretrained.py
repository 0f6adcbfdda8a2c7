"""Pretrained weights of any code base, loaded completely or not at all: ``type='swinv2_mm.Pretrained'``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from swinv2_mm.checkpoints.adapt import adapt_channels, adapt_patch
from swinv2_mm.checkpoints.geometry import read_geometry
from swinv2_mm.checkpoints.load import Windows, as_state, fetch, open_checkpoint, pairs, plain, windows_of
from swinv2_mm.engine.mmengine_internals import note_initialised
from swinv2_mm.engine.saving.matching import misfits
from swinv2_mm.errors import UserError
from swinv2_mm.models.simmim import SimMIM
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import WEIGHT_INITIALIZERS

PATCHES = 'patch_embed.proj.weight'


@WEIGHT_INITIALIZERS.register_module(name='Pretrained')
class Pretrained:
    """Fill a backbone from a checkpoint of any known layout, which is converted when a machine first uses it.

    The patch embedding is adapted to ``in_channels`` and ``patch_size`` with a warning. Output norms that the
    checkpoint does not have start afresh. As ``init_cfg`` of a whole SimMIM it fills mask token and decoder, too.

    Args:
        checkpoint: A path, a URL, a released name such as ``swinv2_tiny_patch4_window8_256``, or ``hf://owner/name``.
        prefix: The prefix of the backbone's keys, such as ``'backbone.'``; None detects it.
        source: The layout; None detects it.
        ema: Load the running average of the weights.
        checkpoint_key: The key of the weights in a file with several models, as ``'teacher'``, or with dots
            ``'model.teacher'``; None finds them.
        input_size: ``(rows, columns)`` of the images, which the tools fill in; the log then has the cost of padding.

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
        checkpoint_key: str | None = None,
        input_size: Sequence[int] | None = None,
    ) -> None:
        self.checkpoint = str(checkpoint)
        self.options = dict(layout=source, prefix=prefix, ema=ema, checkpoint_key=checkpoint_key)
        self.input_size = input_size

    def told_windows(self) -> tuple[list | None, str]:
        """Return the pretrained windows of the checkpoint, per stage; or None and the reason."""
        remedy = 'give the backbone its pretrained_window_sizes, the windows that the weights were first trained with.'
        try:
            known = windows_of(self.checkpoint, **self.options)
        except UserError as error:
            return None, f'{error} If it is gone for good: {remedy}'
        if known is None:
            return None, f'{self.checkpoint} does not tell its pretrained windows. {remedy.capitalize()}'
        return plain(known), ''

    def arguments(self) -> dict[str, Any]:
        """Fetch the checkpoint and return the keyword arguments of its backbone."""
        weights, meta = fetch(self.checkpoint, **self.options)
        geometry = read_geometry(weights)
        windows = meta['window_size'] or meta['pretrained_window_sizes']
        found = dict(geometry.arguments(), out_indices=tuple(range(len(geometry.depths))))
        return dict(found, window_size=windows) if windows else found

    def check(self, module: SwinTransformerV2 | SimMIM) -> tuple[dict[str, Tensor], dict[str, Any], Windows | None]:
        """Check that the checkpoint fits, also on the meta device; return weights, meta and windows of the backbone."""
        if isinstance(module, SimMIM):
            self._rest(module)
            module = module.backbone
        if not isinstance(module, SwinTransformerV2):
            raise UserError(f'swinv2_mm.Pretrained belongs into model.backbone.init_cfg, not {type(module).__name__}.')
        weights, meta = fetch(self.checkpoint, **self.options)
        wanted = module.state_dict()
        optional = {key for key in wanted if key.startswith('norm') and key not in weights} | {PATCHES}
        faults = misfits(weights, {key: tensor for key, tensor in wanted.items() if key not in optional})
        stages = tuple(f'stages.{i}.' for i in range(len(module.stages)))
        unused = {key for key in weights if key.startswith(stages) and key not in wanted}
        if unused and not faults:
            faults = f'{len(unused)} of its tensors have no place in it, such as {min(unused)}'
        if faults:
            raise UserError(
                f'{self.checkpoint} does not fit the backbone: {faults}. It is of another size: compare arch, or '
                'embed_dims, depths, num_heads and qkv_bias.'
            )
        known, own = pairs(meta['pretrained_window_sizes'], len(meta['depths'])), module.pretrained_window_sizes
        if known is None and not module.windows_given:
            raise UserError(self.told_windows()[1])
        if known is not None and module.windows_given and own != known[: len(own)]:
            raise UserError(
                f'pretrained_window_sizes={plain(own)} of the backbone contradicts {self.checkpoint}. Set '
                f'pretrained_window_sizes={plain(known)}, or leave it out; window_size may be any.'
            )
        return weights, meta, known

    def _rest(self, module: SimMIM) -> dict[str, Tensor]:
        """The mask token and the decoder for a SimMIM, checked."""
        fetch(self.checkpoint, **self.options)  # of several processes, one downloads
        weights = open_checkpoint(self.checkpoint, **self.options).rest('simmim').weights
        own = {key: tensor for key, tensor in module.state_dict().items() if not key.startswith('backbone.')}
        if faults := misfits(weights, own):
            raise UserError(f'{self.checkpoint} does not fit SimMIM: {faults}. Compare in_channels and patch_size.')
        return weights

    def __call__(self, module: SwinTransformerV2 | SimMIM) -> None:
        if isinstance(module, SimMIM):
            rest = self._rest(module)
            self(module.backbone)
            module.load_state_dict(rest, strict=False)
            note_initialised(module, f'swinv2_mm.Pretrained: loaded from {self.checkpoint}')
            return
        weights, meta, known = self.check(module)
        wanted = module.state_dict()
        old, shape = weights[PATCHES], wanted[PATCHES].shape
        if old.shape != shape:
            adapted = adapt_channels(old.float(), shape[1])
            weights[PATCHES] = adapted if old.shape[2] == shape[2] else adapt_patch(adapted, shape[2])
            change = f'from {old.shape[1]} channels and patches of {old.shape[2]} pixels to {shape[1]} and {shape[2]}'
            warning = f'{self.checkpoint}: the patch embedding was adapted {change}; fine-tune it.'
            print_log(warning, logger='current', level=logging.WARNING)
        weights |= as_state(known and known[: len(module.stages)])
        module.load_state_dict({key: tensor for key, tensor in weights.items() if key in wanted}, strict=False)
        note_initialised(module, f'swinv2_mm.Pretrained: loaded from {self.checkpoint}')
        new = ', '.join(sorted({key.split('.')[0] for key in wanted.keys() - weights.keys() if key.startswith('norm')}))
        told = f', {new} start afresh' if new else ''
        told += f'; window {plain(module.window_size)}, pretrained window {plain(module.pretrained_window_sizes)}'
        if not known:
            told += ' (as configured: the file does not tell)'
        if self.input_size:
            rows, columns = self.input_size
            costs = ' '.join(f'{cost:.2f}' for cost in module.padding_cost((rows, columns)))
            told += f'; at {rows}x{columns} windows compute {costs} tokens per real one, by stage'
        origin = f'{meta["source_layout"]}, SHA-256 {meta["source_sha256"][:12]}'
        print_log(f'{self.checkpoint} ({origin}): all weights loaded{told}', logger='current')


def leave_out_pretrained(model: nn.Module) -> None:
    """Have a model initialise nothing from files: a checkpoint will fill it, and the files may be gone."""
    for module in model.modules():
        if isinstance(module, SwinTransformerV2 | SimMIM):
            module.init_cfg = None
