"""Swin Transformer V2 (arXiv 2111.09883) as a multi-scale backbone: block, stage, backbone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_mm.models.arguments import (
    check_heads,
    check_mlp_ratio,
    check_window_fit,
    checkpointed_stages,
    emitted_stages,
    flag,
    integer,
    integers,
    is_sequence,
    probability,
    refuse_unknown,
    windows_per_stage,
)
from swinv2_mm.models.attention import WindowAttention
from swinv2_mm.models.kernels.arithmetic import autocasts_in_vain
from swinv2_mm.models.layers import (
    DropPath,
    Mlp,
    PatchEmbed,
    PatchMerging,
    add_branch,
    init_linear,
    zero_norm,
)
from swinv2_mm.models.recording import is_ordinary, is_recorded
from swinv2_mm.models.window import (
    effective_window,
    fit_window,
    pad_bottom_right,
    padding_to_windows,
)
from swinv2_mm.registry import MODELS, WEIGHT_INITIALIZERS
from swinv2_mm.sizes import get_variant

Pair = tuple[int, int]
LOGGER = logging.getLogger('swinv2_mm')


class SwinTransformerV2Block(nn.Module):
    """Window attention, then an MLP, each normalised *after* it and added to the main branch (res-post-norm).

    Args:
        embed_dims: Channels ``C``.
        num_heads: Heads, a divisor of ``C``.
        window_size: ``(Wh, Ww)``, in tokens.
        pretrained_window_size: Normaliser of the position bias, per axis.
        shifted: Shift the windows by half a window.
        mlp_ratio, qkv_bias, drop_rate, attn_drop_rate: See :class:`SwinTransformerV2`.
        drop_path_rate: Probability to drop each of the two residual branches, per sample.
        extra_norm: A LayerNorm on the main branch at the end of the block (huge and giant sizes).
        mask_padding, window_fit, attn_chunk, attn_backend: See :class:`SwinTransformerV2`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: Pair,
        pretrained_window_size: Pair,
        shifted: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        extra_norm: bool = False,
        mask_padding: bool = True,
        window_fit: str = 'fixed',
        attn_chunk: int | str | None = None,
        attn_backend: str = 'auto',
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.window_fit = window_fit
        self.shifted = shifted
        self.mask_padding = mask_padding
        self.attn = WindowAttention(
            embed_dims, num_heads, pretrained_window_size, qkv_bias, attn_drop_rate, drop_rate, attn_chunk, attn_backend
        )
        self.norm1 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, int(embed_dims * mlp_ratio), drop_rate)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.drop_path1 = DropPath(drop_path_rate)
        self.drop_path2 = DropPath(drop_path_rate)
        self.norm3 = nn.LayerNorm(embed_dims) if extra_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape."""
        x = add_branch(x, self._attend(x), self.norm1, self.drop_path1)
        x = add_branch(x, self.mlp(x), self.norm2, self.drop_path2)
        return x if self.norm3 is None else self.norm3(x)

    def window_on(self, size: Pair) -> Pair:
        """The window ``(Wh, Ww)`` that is used on a map of ``(H, W)`` tokens."""
        window = fit_window(size, self.window_size, self.window_fit == 'balanced')
        return effective_window(size, window) if self.mask_padding else window

    def _attend(self, x: Tensor) -> Tensor:
        size = x.shape[1:3]
        window = self.window_on(size)
        if not self.mask_padding:  # zero tokens take part as real ones, so the map as padded is the map
            x = pad_bottom_right(x, *padding_to_windows(size, window))
        return self.attn(x, window, self.shifted, size, self.window_size)


class SwinTransformerV2Stage(nn.Module):
    """An optional patch merging, then blocks with plain and shifted windows in turn.

    Args:
        in_dims: Channels of the input.
        embed_dims: Channels of the blocks.
        drop_path_rates: One per block; their number is the depth.
        downsample: Start with a patch merging from ``in_dims`` to ``embed_dims``.
        extra_norm_every: An extra norm in every so many blocks; 0 for none.
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
        **block_args: Given to every :class:`SwinTransformerV2Block`.
    """

    def __init__(
        self,
        in_dims: int,
        embed_dims: int,
        drop_path_rates: Sequence[float],
        downsample: bool,
        extra_norm_every: int = 0,
        with_cp: bool = False,
        **block_args: Any,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.downsample = PatchMerging(in_dims, embed_dims) if downsample else None
        self.blocks = nn.ModuleList(
            SwinTransformerV2Block(
                embed_dims,
                shifted=index % 2 == 1,
                drop_path_rate=rate,
                extra_norm=extra_norm_every > 0 and (index + 1) % extra_norm_every == 0,
                **block_args,
            )
            for index, rate in enumerate(drop_path_rates)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), embed_dims)``, or ``(B, H, W, embed_dims)``."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled() and not torch.jit.is_tracing():  # which sees other graphs
                x = checkpoint(block, x, use_reentrant=False)  # the reentrant kind breaks under DDP
            else:
                x = block(x)
        return x


@MODELS.register_module()
class SwinTransformerV2(BaseModule):
    """Swin Transformer V2, emitting one feature map per entry of ``out_indices``.

    The map of stage ``i`` has ``embed_dims * 2 ** i`` channels and ``ceil(side / (patch_size * 2 ** i))`` rows and
    columns. Images of any size are accepted.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'huge'`` or ``'giant'``: defaults for the next three.
        embed_dims: Channels of the first stage.
        depths: Blocks per stage; their number is the number of stages.
        num_heads: Attention heads per stage; each divides the stage's channels.
        in_channels: Channels of the image.
        patch_size: Side of a patch, in pixels.
        window_size: Side of the windows, in tokens: one number, or per stage a number or a pair ``(Wh, Ww)``.
        pretrained_window_sizes: The windows of the *first* pre-training of the weights, in the same form; they
            normalise the position bias, belong to the weights, and travel with them in the state_dict, as
            ``pretrained_windows``. None: what the weights say that are loaded, by ``init_cfg`` or otherwise; as long as
            nothing says, ``window_size``. 0 for a stage: its ``window_size``.
        mlp_ratio: Width of the MLP relative to the channels.
        qkv_bias: Learn a bias for queries and values.
        drop_rate: Dropout after the patch embedding, the projections and in the MLP.
        attn_drop_rate: Dropout of the attention probabilities.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        out_indices: Stages whose features are emitted, in rising order; negative ones count from the last.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, ``i`` also the first ``i`` stages.
        with_cp: Activation checkpointing: True recomputes every block in the backward pass, a list of stages the blocks
            of those. Less memory, about a third more time.
        mask_padding: Exclude the padding that completes windows from attention, so that a pixel's features do not
            depend on it. False lets zero tokens take part, as MMDetection and MMPretrain do.
        window_fit: ``'fixed'`` uses windows of ``window_size`` and pads the map to them. ``'balanced'`` shrinks them,
            per map and axis, as far as their number stays the same, which pads least: the position bias is continuous
            and takes any window.
        attn_chunk: Windows whose attention is computed at a time; None computes all at once. ``'auto'`` keeps the
            logits of a chunk below 64 MiB. The results are the same; large windows on large images need far less
            memory.
        attn_backend: ``'sdpa'`` computes attention with torch's operations, on any device. ``'triton'`` takes our fused
            kernels: CUDA GPUs from Ampere on, without ``attn_drop_rate``. ``'auto'`` takes them where they have been
            measured to be faster and exact; that is nowhere yet.
        init_cfg: mmengine's initialisation; ``dict(type='swinv2_mm.Pretrained', checkpoint=...)`` loads weights of
            any layout.

    Raises:
        ValueError: A value is out of range; the message names the argument, the value and the remedy. When weights are
            loaded: they were trained with other pretrained windows than the ones given.
        TypeError: An argument that there is not; for one of Swin V1's or MMPretrain's, with what replaces it.

    Example:
        >>> backbone = SwinTransformerV2('tiny', window_size=8)
        >>> [tuple(f.shape) for f in backbone(torch.rand(1, 3, 100, 150))]
        [(1, 96, 25, 38), (1, 192, 13, 19), (1, 384, 7, 10), (1, 768, 4, 5)]
    """

    def __init__(
        self,
        arch: str = 'tiny',
        embed_dims: int | None = None,
        depths: Sequence[int] | None = None,
        num_heads: Sequence[int] | None = None,
        in_channels: int = 3,
        patch_size: int = 4,
        window_size: int | Sequence[int | Sequence[int]] = 8,
        pretrained_window_sizes: int | Sequence[int | Sequence[int]] | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool | Sequence[int] = False,
        mask_padding: bool = True,
        window_fit: str = 'fixed',
        attn_chunk: int | str | None = None,
        attn_backend: str = 'auto',
        init_cfg: dict | list[dict] | None = None,
        **unknown: Any,
    ) -> None:
        refuse_unknown(type(self).__init__, unknown)
        variant = get_variant(arch)
        embed_dims = integer('embed_dims', variant.embed_dims if embed_dims is None else embed_dims, 1)
        depths = integers('depths', variant.depths if depths is None else depths, 1)
        num_heads = integers('num_heads', variant.num_heads if num_heads is None else num_heads, 1)
        stages = len(depths)
        dims = [embed_dims * 2**i for i in range(stages)]
        check_heads(dims, num_heads)
        integer('in_channels', in_channels, 1)
        integer('patch_size', patch_size, 1)
        windows = windows_per_stage('window_size', window_size, stages, minimum=1)
        pretrained, unknown_windows = windows, ''
        given = pretrained_window_sizes is not None
        if not given:
            pretrained_window_sizes, unknown_windows = _windows_of_weights(init_cfg, stages)
        if pretrained_window_sizes is not None:
            pretrained = windows_per_stage('pretrained_window_sizes', pretrained_window_sizes, stages, minimum=0)
            pretrained = [(ph or wh, pw or ww) for (ph, pw), (wh, ww) in zip(pretrained, windows, strict=True)]
        check_mlp_ratio(mlp_ratio, embed_dims)
        probability('drop_rate', drop_rate)
        probability('attn_drop_rate', attn_drop_rate)
        probability('drop_path_rate', drop_path_rate)
        flag('qkv_bias', qkv_bias)
        flag('mask_padding', mask_padding)
        out_indices = emitted_stages(out_indices, stages)
        check_window_fit(window_fit)
        if attn_chunk is not None and attn_chunk != 'auto':
            integer('attn_chunk', attn_chunk, 1)
        if attn_backend not in ('auto', 'sdpa', 'triton'):
            raise ValueError(f"attn_backend={attn_backend!r} is unknown; choose 'auto', 'sdpa' or 'triton'.")
        if attn_backend == 'triton' and attn_drop_rate:
            raise ValueError(
                f"attn_backend='triton' has no dropout, but attn_drop_rate={attn_drop_rate!r}; leave out "
                'one of the two.'
            )
        checkpointed = checkpointed_stages(with_cp, stages)
        if type(frozen_stages) is not int or frozen_stages not in range(-1, stages + 1):
            raise ValueError(
                f'frozen_stages={frozen_stages!r} must be a whole number from -1 (nothing frozen) to '
                f'{stages}, the number of stages.'
            )

        if is_sequence(init_cfg):  # mmengine applies them in order: none may overwrite what was loaded
            init_cfg = sorted(init_cfg, key=_fills_backbone)
        super().__init__(init_cfg)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.num_features = dims
        self.patch_size = patch_size
        self.window_size = tuple(windows)
        self.windows_given, self._windows_unknown = given, unknown_windows
        self.register_buffer('pretrained_windows', torch.tensor(pretrained))
        self._logged: set[tuple[Pair, tuple[Pair, ...]]] = set()
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = [drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.stages = nn.ModuleList(
            SwinTransformerV2Stage(
                in_dims=dims[max(i - 1, 0)],
                embed_dims=dims[i],
                drop_path_rates=rates[sum(depths[:i]) : sum(depths[: i + 1])],
                downsample=i > 0,
                extra_norm_every=variant.extra_norm_every,
                with_cp=i in checkpointed,
                num_heads=num_heads[i],
                window_size=windows[i],
                pretrained_window_size=pretrained[i],
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop_rate=drop_rate,
                attn_drop_rate=attn_drop_rate,
                mask_padding=mask_padding,
                window_fit=window_fit,
                attn_chunk=attn_chunk,
                attn_backend=attn_backend,
            )
            for i in range(stages)
        )
        for i in out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        self._reset_parameters()
        self._freeze()

    def _reset_parameters(self) -> None:
        """Initialise as Microsoft does; a fresh block is the identity."""
        self.apply(init_linear)
        for stage in self.stages:
            for block in stage.blocks:
                zero_norm(block.norm1)
                zero_norm(block.norm2)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        norms = [getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        return [self.patch_embed, self.pos_drop, *self.stages[: self.frozen_stages], *norms]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SwinTransformerV2:
        """Switch the mode; frozen stages stay in eval, without gradients."""
        super().train(mode)
        self._freeze()
        return self

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str,
        *,
        prefix: str | None = None,
        source: str | None = None,
        ema: bool = False,
        **arguments: Any,
    ) -> SwinTransformerV2:
        """Build the backbone that a checkpoint is of, filled, in eval mode.

        Args:
            checkpoint, prefix, source, ema: Those of ``swinv2_mm.Pretrained``: a released name, a file or folder, a URL
                or ``hf://owner/name``.
            **arguments: Of the constructor, such as ``window_size`` or ``out_indices``, in the place of the
                checkpoint's own; by default the windows are those it was trained with, and all stages are emitted.

        Raises:
            UserError: The checkpoint cannot be had or read, or does not fill the backbone.
        """
        init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=str(checkpoint), prefix=prefix, source=source, ema=ema)
        size = WEIGHT_INITIALIZERS.parent.build(dict(init_cfg)).arguments()
        backbone = cls(**{**size, **arguments}, init_cfg=init_cfg)
        backbone.init_weights()
        return backbone.eval()

    @property
    def pretrained_window_sizes(self) -> tuple[Pair, ...]:
        """The normaliser of the position bias, per stage; it follows the weights that are loaded."""
        return tuple(stage.blocks[0].attn.pretrained_window_size for stage in self.stages)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:  # the numbers in use: whoever averages buffers, or empties them, may have changed the copy
            destination[f'{prefix}pretrained_windows'] = torch.tensor(
                self.pretrained_window_sizes, device=self.pretrained_windows.device
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As torch's, and mmengine's, that call it; the pretrained windows are taken over, or a contradiction told."""
        key = f'{prefix}pretrained_windows'
        told = state_dict.pop(key, None)  # it is a copy, to be edited here
        if told is not None and is_ordinary(told) and not told.is_meta and len(told) >= len(self.stages):
            self._take_windows([tuple(pair) for pair in told[: len(self.stages)].tolist()], prefix)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if key in missing_keys:  # weights of other code bases, and of times before
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

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of images ``(B, in_channels, H, W)``; each is contiguous, ``(B, C, h, w)``."""
        if self._windows_unknown:
            raise RuntimeError(
                f'pretrained_window_sizes of the backbone was left to the weights, which have not told '
                f'it: {self._windows_unknown}'
            )
        if not is_recorded():
            self._log_padding(tuple(x.shape[-2:]))
        if autocasts_in_vain(x):
            with torch.autocast('cpu', enabled=False):
                return self._features(x.float())
        return self._features(x)

    def _features(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.pos_drop(self.patch_embed(x))
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())  # (B, C, h, w)
        return tuple(outs)

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the maps that are emitted: what a neck takes as ``in_channels``."""
        return tuple(self.num_features[i] for i in self.out_indices)

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and stage of the maps that are emitted, in timm's words."""
        return [
            dict(num_chs=self.num_features[i], reduction=self.patch_size * 2**i, module=f'stages.{i}', index=i)
            for i in self.out_indices
        ]

    def no_weight_decay(self) -> set[str]:
        """Parameters that Microsoft's training does not decay, beside norms and biases; timm asks for them by this."""
        return {name for name, _ in self.named_parameters() if 'cpb_mlp' in name or 'logit_scale' in name}

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter, for layer-wise learning-rate decay, and the number of layers.

        The patch embedding is layer 0, block ``k``, counted from 0 through all stages, layer ``k + 1``. A stage's
        ``downsample`` belongs to the block in front of it, as in Microsoft's code, where it ends the stage before. The
        output norms ``norm{i}`` belong to the heads, the last layer, as Microsoft's last norm and MMDetection's
        ConvNeXt have it: they are read by the heads alone, and of a released classifier's weights only the last exists.

        Args:
            param_name: Such as ``backbone.stages.1.blocks.0.norm1.weight``.
            prefix: In front of the backbone's own names, such as ``backbone.``; other parameters are the heads'.
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
        """For each stage the map and the window that is used on it, in tokens, for images of ``(H, W)`` pixels."""
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

        Counted are all matrix products: those of attention, and its projections, on windows with their padding; the MLP
        on the map; and what makes the map, the patch embedding of the first stage and the merging of the others. Not
        counted are element-wise operations, norms and soft-max, and the MLP of the position bias, which depends on the
        weights alone: evaluation computes it once. Microsoft's ``flops()`` counts the same, and the norms.
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

    def _log_padding(self, size: Pair) -> None:
        """Say at debug level what the windows cost on images of a size, the first time that it occurs."""
        if LOGGER.isEnabledFor(logging.DEBUG) and (size, self.window_size) not in self._logged:
            self._logged.add((size, self.window_size))
            costs = ' '.join(f'{cost:.2f}' for cost in self.padding_cost(size))
            LOGGER.debug('%dx%d pixels: windows compute %s tokens per real one, by stage', *size, costs)


def _fills_backbone(cfg: Any) -> bool:
    """Whether an initialisation loads a checkpoint that tells its windows."""
    kind = WEIGHT_INITIALIZERS.parent.get(cfg['type']) if isinstance(cfg, dict) and 'type' in cfg else None
    return hasattr(kind, 'told_windows')


def _windows_of_weights(init_cfg: Any, stages: int) -> tuple[Any, str]:
    """What the checkpoint of the initialisation says of its windows, or None, and why it does not say."""
    for cfg in init_cfg if is_sequence(init_cfg) else [init_cfg]:
        if _fills_backbone(cfg):
            told, reason = WEIGHT_INITIALIZERS.parent.build(cfg).told_windows()
            return told and told[:stages], reason
    return None, ''


def _plain(windows: Sequence[Pair]) -> list[Any]:
    """Square windows as numbers, as people write them."""
    return [rows if rows == columns else (rows, columns) for rows, columns in windows]
