"""Swin Transformer V2 (arXiv 2111.09883) as a multi-scale backbone: its block, stage and whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from swinv2_mm.compat import left_by_old_compilers
from swinv2_mm.models import arguments
from swinv2_mm.models.attention import WindowAttention
from swinv2_mm.models.conventions import Conventions
from swinv2_mm.models.kernels import choose
from swinv2_mm.models.layers import (
    START_FROM_SCRATCH,
    DropPath,
    Mlp,
    PatchEmbed,
    PatchMerging,
    add_branch,
    init_from_scratch,
    init_linear,
)
from swinv2_mm.models.pretrained_windows import loads_backbone
from swinv2_mm.models.window import effective_window, fit_window, pad_bottom_right, padding_to_windows
from swinv2_mm.registry import MODELS
from swinv2_mm.sizes import get_variant

Pair = tuple[int, int]


class SwinTransformerV2Block(nn.Module):
    """Window attention, then an MLP, each normalised *after* it and added to the main branch (res-post-norm).

    Args:
        embed_dims: Channels ``C``.
        num_heads: Heads, a divisor of ``C``.
        window_size: ``(Wh, Ww)``, in tokens.
        shifted: Shift the windows by half a window.
        mlp_ratio, drop_rate, mask_padding, window_fit: See :class:`SwinTransformerV2`.
        drop_path_rate: Probability to drop each of the two residual branches, per sample.
        extra_norm: A LayerNorm on the main branch at the end of the block (huge and giant sizes).
        **attention_args: Further arguments of :class:`~swinv2_mm.models.attention.WindowAttention`.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        window_size: Pair,
        shifted: bool = False,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        extra_norm: bool = False,
        mask_padding: bool = True,
        window_fit: str = 'fixed',
        **attention_args: Any,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.window_fit = window_fit
        self.shifted = shifted
        self.mask_padding = mask_padding
        self.attn = WindowAttention(embed_dims, num_heads, drop_rate=drop_rate, **attention_args)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, int(embed_dims * mlp_ratio), drop_rate)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.drop_path1 = DropPath(drop_path_rate)
        self.drop_path2 = DropPath(drop_path_rate)
        self.norm3 = nn.LayerNorm(embed_dims) if extra_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape."""
        x = add_branch(x, self._attend(x), self.norm1, self.drop_path1)  # x + drop_path(norm1(attn(x)))
        x = add_branch(x, self.mlp(x), self.norm2, self.drop_path2)  # x + drop_path(norm2(mlp(x)))
        return x if self.norm3 is None else self.norm3(x)

    def window_on(self, size: Pair) -> Pair:
        """The window ``(Wh, Ww)`` in use on a map of ``(H, W)`` tokens."""
        window = fit_window(size, self.window_size, self.window_fit == 'balanced')
        return effective_window(size, window) if self.mask_padding else window

    def _attend(self, x: Tensor) -> Tensor:
        size = x.shape[1], x.shape[2]
        window = self.window_on(size)
        if not self.mask_padding:  # zero tokens take part like real ones, so the padded map is the map
            x = pad_bottom_right(x, *padding_to_windows(size, window))
        return self.attn(x, window, self.shifted, size, self.window_size)


class SwinTransformerV2Stage(nn.Module):
    """An optional patch merging, then blocks with plain and shifted windows in turn.

    Args:
        in_dims: Channels of the input.
        embed_dims: Channels of the blocks.
        drop_path_rates: One per block; their number is the depth.
        downsample: Start with a patch merging from ``in_dims`` to ``embed_dims``.
        extra_norm_every: Every how many blocks there is an extra norm; 0 for none.
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
        **block_args: Arguments of every :class:`SwinTransformerV2Block`.
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
            if self.with_cp and choose.may_recompute():
                x = checkpoint(block, x, use_reentrant=False)  # the reentrant kind breaks under DDP
            else:
                x = block(x)
        return x


@MODELS.register_module()
class SwinTransformerV2(Conventions):
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
            normalise the position bias, and travel with the weights, as ``pretrained_windows`` of the state_dict. None:
            those of the loaded weights; ``window_size`` until weights name them. 0 for a stage: its ``window_size``.
        mlp_ratio: Width of the MLP relative to the channels.
        qkv_bias: Learn a bias for queries and values.
        drop_rate: Dropout after the patch embedding, the projections and in the MLP.
        attn_drop_rate: Dropout of the attention probabilities.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        out_indices: Stages whose features are emitted, in rising order; negative ones count from the last.
        frozen_stages: -1 freezes nothing, 0 the patch embedding, ``i`` also the first ``i`` stages.
        with_cp: Recompute every block in the backward pass, or those of a list of stages: less memory, about a third
            more time.
        mask_padding: Exclude the padding that completes windows from attention, so that a pixel's features do not
            depend on it. False lets zero tokens take part, as MMDetection and MMPretrain do.
        window_fit: ``'fixed'`` uses windows of ``window_size`` and pads the map to them. ``'balanced'`` shrinks them,
            per map and axis, while their number stays the same, which pads least.
        attn_chunk: The windows whose attention is computed together (paper, section 3.4); None computes all at once,
            ``'auto'`` keeps the logits of a chunk below 64 MiB. Large windows on large images then need less memory.
        attn_backend: Who computes attention. ``'auto'``: the C++ on a CPU, if it can; otherwise torch's operations, of
            which one is a fused kernel on an NVIDIA GPU. ``'sdpa'``: torch's operations, on any device. ``'cpp'``: the
            C++, or an error that says why not; a tracer still gets torch's operations. ``'triton'``: fused kernels of
            ours for GPUs from Ampere on, or an error; ``'auto'`` takes them on GPUs where they were measured to be
            faster (``usable.TRITON_IS_FASTER``), so far on none. The last two have no ``attn_drop_rate``.
        from_scratch: Start values for a short training from random weights, see ``init_from_scratch`` in layers.py.
            False starts as Microsoft does, whose values suit long trainings; weights that are loaded replace either.
        init_cfg: mmengine's initialisation; ``dict(type='swinv2_mm.Pretrained', checkpoint=...)`` loads weights of
            any code base.

    Raises:
        ValueError: A value is out of range; the message names the argument, the value and the remedy. While loading
            weights: they were trained with other pretrained windows than those given.
        TypeError: An argument is unknown; for one of Swin V1 or MMPretrain the message names the replacement.

    Example:
        >>> import torch
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
        from_scratch: bool = False,
        init_cfg: dict | list[dict] | None = None,
        **unknown: Any,
    ) -> None:
        arguments.refuse_unknown(type(self).__init__, unknown)
        variant = get_variant(arch)
        embed_dims = arguments.integer('embed_dims', variant.embed_dims if embed_dims is None else embed_dims, 1)
        depths = arguments.integers('depths', variant.depths if depths is None else depths, 1)
        num_heads = arguments.integers('num_heads', variant.num_heads if num_heads is None else num_heads, 1)
        stages = len(depths)
        dims = [embed_dims * 2**i for i in range(stages)]
        arguments.check_heads(dims, num_heads)
        arguments.integer('in_channels', in_channels, 1)
        arguments.integer('patch_size', patch_size, 1)
        windows = arguments.windows_per_stage('window_size', window_size, stages, minimum=1)
        arguments.check_mlp_ratio(mlp_ratio, embed_dims)
        arguments.probability('drop_rate', drop_rate)
        arguments.probability('attn_drop_rate', attn_drop_rate)
        arguments.probability('drop_path_rate', drop_path_rate)
        arguments.flag('qkv_bias', qkv_bias)
        arguments.flag('mask_padding', mask_padding)
        arguments.flag('from_scratch', from_scratch)
        out_indices = arguments.emitted_stages(out_indices, stages)
        arguments.choice('window_fit', window_fit, 'fixed', 'balanced')
        arguments.check_attention(attn_chunk, attn_backend, attn_drop_rate)
        checkpointed = arguments.checkpointed_stages(with_cp, stages)
        arguments.check_frozen(frozen_stages, stages)

        if arguments.is_sequence(init_cfg):  # mmengine applies them in order: loaded weights come last
            init_cfg = sorted(init_cfg, key=loads_backbone)
        super().__init__(init_cfg)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.num_features = dims
        self.patch_size = patch_size
        self.window_size = tuple(windows)
        pretrained = self._first_pretrained_windows(pretrained_window_sizes, windows)
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
        self._reset_parameters(from_scratch)
        self._freeze()

    def _reset_parameters(self, from_scratch: bool) -> None:
        """Initialise as Microsoft does: norms of zero make a fresh block the identity. Or for a short training."""
        self.apply(init_linear)
        if from_scratch:
            init_from_scratch(self)
        for stage in self.stages:
            for block in stage.blocks:
                for norm in (block.norm1, block.norm2):
                    nn.init.constant_(norm.weight, START_FROM_SCRATCH if from_scratch else 0.0)
                    nn.init.zeros_(norm.bias)

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        norms = [getattr(self, f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        for module in (self.patch_embed, self.pos_drop, *self.stages[: self.frozen_stages], *norms):
            module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> SwinTransformerV2:
        """Switch the mode; frozen stages stay in eval, without gradients."""
        super().train(mode)
        self._freeze()
        return self

    @left_by_old_compilers
    def forward(self, x: Tensor, masked: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Compute the feature maps of images ``(B, in_channels, H, W)``; each is contiguous, ``(B, C, h, w)``.

        Args:
            x: The images.
            masked: For masked image modelling: which tokens are hidden, boolean ``(B, ceil(H / patch), ceil(W /
                patch))``, and the token in their place, ``(1, 1, embed_dims)``.
        """
        self._check_windows_known()
        return choose.in_useful_type(lambda images: self._features(images, masked), x)

    def _features(self, x: Tensor, masked: tuple[Tensor, Tensor] | None) -> tuple[Tensor, ...]:
        x = self.patch_embed(x)
        if masked is not None:
            hidden, token = masked
            x = torch.where(hidden.unsqueeze(-1), token.to(x.dtype), x)
        x = self.pos_drop(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())  # (B, C, h, w)
        return tuple(outs)
