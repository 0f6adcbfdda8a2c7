"""The methods by which other code uses the backbone: weights by name, metadata, parameter groups, windows, costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swinv2_mm.models import costs
from swinv2_mm.models.arguments import check_window_fit, windows_per_stage
from swinv2_mm.models.pretrained_windows import WithPretrainedWindows
from swinv2_mm.registry import WEIGHT_INITIALIZERS

Pair = tuple[int, int]


class Conventions(WithPretrainedWindows):
    """The part of :class:`~swinv2_mm.models.swin_v2.SwinTransformerV2` that computes no features.

    Attributes:
        stages, out_indices, num_features, patch_size, window_size: Of the backbone.
    """

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        *,
        prefix: str | None = None,
        source: str | None = None,
        ema: bool = False,
        **arguments: Any,
    ) -> Conventions:
        """Build the backbone of a checkpoint with its weights, in eval mode.

        Args:
            checkpoint, prefix, source, ema: As for ``swinv2_mm.Pretrained``: a released name, a file or folder, a URL
                or ``hf://owner/name``.
            **arguments: Arguments of the constructor that replace the checkpoint's own, such as ``window_size`` or
                ``out_indices``. The defaults are the windows of training, and all stages.

        Raises:
            UserError: The checkpoint cannot be found or read, or does not fill the backbone.
        """
        init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=str(checkpoint), prefix=prefix, source=source, ema=ema)
        size = WEIGHT_INITIALIZERS.parent.build(dict(init_cfg)).arguments()
        backbone = cls(**{**size, **arguments}, init_cfg=init_cfg)
        backbone.init_weights()
        return backbone.eval()

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the emitted maps: ``in_channels`` of a neck."""
        return tuple(self.num_features[i] for i in self.out_indices)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and stage of the emitted maps, in timm's format."""
        return [
            dict(num_chs=self.num_features[i], reduction=self.patch_size * 2**i, module=f'stages.{i}', index=i)
            for i in self.out_indices
        ]

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay in Microsoft's training, besides norms and biases; timm calls this method."""
        return {name for name, _ in self.named_parameters() if 'cpb_mlp' in name or 'logit_scale' in name}

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter, for layer-wise learning-rate decay, and the number of layers.

        The patch embedding is layer 0, block ``k``, counted from 0 through all stages, layer ``k + 1``. A stage's
        ``downsample`` belongs to the block in front of it, as in Microsoft's code, where it ends the stage before. The
        output norms ``norm{i}`` belong to the heads, the last layer, like Microsoft's last norm and the norms of
        MMDetection's ConvNeXt: only the heads read them, and a released classifier has only the last of them.

        Args:
            param_name: For example ``backbone.stages.1.blocks.0.norm1.weight``.
            prefix: The prefix of the backbone's own names, such as ``backbone.``; other parameters are the heads'.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        last = sum(depths) + 1
        if not param_name.startswith(prefix):
            return last, last + 1
        match param_name[len(prefix) :].split('.'):
            case 'patch_embed', *_:
                layer = 0
            case 'stages', stage, 'downsample', *_:
                layer = sum(depths[: int(stage)])
            case 'stages', stage, 'blocks', block, *_:
                layer = sum(depths[: int(stage)]) + int(block) + 1
            case _:
                layer = last
        return layer, last + 1

    def set_window_size(self, window_size: int | Sequence[int | Sequence[int]]) -> None:
        """Change the windows of a built model; no parameter changes, nor the normaliser of the position bias.

        A trained model may be run at any window (paper, table 3).

        Args:
            window_size: As for the constructor.

        Raises:
            ValueError: Not whole numbers from 1, or not one per stage.
        """
        windows = windows_per_stage('window_size', window_size, len(self.stages), minimum=1)
        self.window_size = tuple(windows)
        for stage, window in zip(self.stages, windows, strict=True):
            for block in stage.blocks:
                block.window_size = window

    def set_window_fit(self, window_fit: str) -> None:
        """Change ``window_fit`` of a built model.

        Raises:
            ValueError: Neither ``'fixed'`` nor ``'balanced'``.
        """
        check_window_fit(window_fit)
        for stage in self.stages:
            for block in stage.blocks:
                block.window_fit = window_fit

    def windows_on(self, size: Pair) -> list[tuple[Pair, Pair]]:
        """See :func:`swinv2_mm.models.costs.windows_on`."""
        return costs.windows_on(self, size)

    def padding_cost(self, size: Pair) -> list[float]:
        """See :func:`swinv2_mm.models.costs.padding_cost`."""
        return costs.padding_cost(self, size)

    def multiply_adds(self, size: Pair) -> list[int]:
        """See :func:`swinv2_mm.models.costs.multiply_adds`."""
        return costs.multiply_adds(self, size)
