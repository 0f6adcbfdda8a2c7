"""The methods by which other code uses the backbone: weights by name, metadata, parameter groups, windows, costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.registry import WEIGHT_INITIALIZERS

from swinv2_mm.models.arguments import choice, windows_per_stage
from swinv2_mm.models.pretrained_windows import WithPretrainedWindows
from swinv2_mm.models.window import padding_to_windows

Pair = tuple[int, int]


class Conventions(WithPretrainedWindows):
    """The part of :class:`~swinv2_mm.models.swin_v2.SwinTransformerV2` that computes no features."""

    out_indices: tuple[int, ...]
    num_features: list[int]
    patch_size: int
    window_size: tuple[Pair, ...]
    patch_embed: Any

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        *,
        prefix: str | None = None,
        source: str | None = None,
        ema: bool = False,
        checkpoint_key: str | None = None,
        **arguments: Any,
    ) -> Conventions:
        """Build the backbone of a checkpoint with its weights, in eval mode.

        Args:
            checkpoint, prefix, source, ema, checkpoint_key: As for ``swinv2_mm.Pretrained``: a released name, a file or
                folder, a URL or ``hf://owner/name``.
            **arguments: Arguments of the constructor that replace the checkpoint's own, such as ``window_size`` or
                ``out_indices``. The defaults are the windows of training, and all stages.

        Raises:
            UserError: The checkpoint cannot be found or read, or does not fill the backbone.
        """
        options = dict(prefix=prefix, source=source, ema=ema, checkpoint_key=checkpoint_key)
        init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=str(checkpoint), **options)
        size = WEIGHT_INITIALIZERS.build(dict(init_cfg)).arguments()
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
        output norms ``norm{i}`` belong to the heads, the last layer: only these read them.

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

        A trained model may be run at any window (paper, table 3). The form and the errors are the constructor's.
        """
        windows = windows_per_stage('window_size', window_size, len(self.stages), minimum=1)
        self.window_size = tuple(windows)
        for stage, window in zip(self.stages, windows, strict=True):
            for block in stage.blocks:
                block.window_size = window

    def set_window_fit(self, window_fit: str) -> None:
        """Change ``window_fit`` of a built model; a ValueError for neither ``'fixed'`` nor ``'balanced'``."""
        choice('window_fit', window_fit, 'fixed', 'balanced')
        for stage in self.stages:
            for block in stage.blocks:
                block.window_fit = window_fit

    def windows_on(self, size: Pair) -> list[tuple[Pair, Pair]]:
        """For each stage its map and the window used on it, in tokens, for images of ``(H, W)`` pixels."""
        H, W = (-(-side // self.patch_size) for side in size)
        found = []
        for i, stage in enumerate(self.stages):
            if i:
                H, W = -(-H // 2), -(-W // 2)
            found.append(((H, W), stage.blocks[0].window_on((H, W))))
        return found

    def padding_cost(self, size: Pair) -> list[float]:
        """Tokens that the windows compute per token of the map, for each stage, for images of ``(H, W)`` pixels."""
        costs = []
        for (H, W), window in self.windows_on(size):
            rows, cols = padding_to_windows((H, W), window)
            costs.append((H + rows) * (W + cols) / (H * W))
        return costs

    def multiply_adds(self, size: Pair) -> list[int]:
        """Multiply-adds (papers: FLOPs) of one image of ``(H, W)`` pixels, for each stage.

        All matrix products count: attention and its projections, on windows with their padding; the MLP on the map; the
        patch embedding in the first stage, patch merging in the others. Only the MLP of the position bias does not:
        evaluation computes it once. Microsoft's ``flops()`` counts the same, and the norms.
        """
        counts = []
        for stage, C, ((H, W), window), cost in zip(
            self.stages, self.num_features, self.windows_on(size), self.padding_cost(size), strict=True
        ):
            N = window[0] * window[1]
            hidden = stage.blocks[0].mlp.fc1.out_features
            entry = self.patch_embed.proj if stage.downsample is None else stage.downsample.reduction
            in_windows = round(H * W * cost) * (4 * C * C + 2 * N * C)
            counts.append(H * W * entry.weight.numel() + len(stage.blocks) * (in_windows + H * W * 2 * C * hidden))
        return counts
