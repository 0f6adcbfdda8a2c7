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
    windows_per_stage,
)
from swinv2_mm.models.attention import WindowAttention
from swinv2_mm.models.layers import DropPath, Mlp, PatchEmbed, PatchMerging, init_linear, zero_norm
from swinv2_mm.models.tokenwise import compute_dtype, in_pieces, tokens_at_a_time
from swinv2_mm.models.variants import get_variant
from swinv2_mm.models.window import (
    effective_window,
    fit_window,
    pad_bottom_right,
    padding_to_windows,
    shift_of,
    window_layout,
    window_partition,
    window_reverse,
)
from swinv2_mm.registry import MODELS, WEIGHT_INITIALIZERS

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
            embed_dims, num_heads, pretrained_window_size, qkv_bias, attn_drop_rate, drop_rate, attn_chunk,
            attn_backend)
        self.norm1 = nn.LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, int(embed_dims * mlp_ratio), drop_rate)
        self.norm2 = nn.LayerNorm(embed_dims)
        self.drop_path = DropPath(drop_path_rate)
        self.norm3 = nn.LayerNorm(embed_dims) if extra_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to the same shape."""
        evaluates = not self.training and not torch.is_grad_enabled()
        # Under autocast each piece would cast the weights anew.
        if evaluates and in_pieces(x) and not self.attn.fused and compute_dtype(x) == x.dtype:
            x = self._forward_in_pieces(x)
        else:
            x = self.drop_path(x, self.norm1(self._attend(x)))
            x = self.drop_path(x, self.norm2(self.mlp(x)))
        return x if self.norm3 is None else self.norm3(x)

    def window_on(self, size: Pair) -> Pair:
        """The window ``(Wh, Ww)`` that is used on a map of ``(H, W)`` tokens."""
        window = fit_window(size, self.window_size, self.window_fit == 'balanced')
        return effective_window(size, window) if self.mask_padding else window

    def _padded(self, x: Tensor) -> tuple[Tensor, Pair]:
        """The map that is cut into windows, ``(B, Hp, Wp, C)``, and the window."""
        size = x.shape[1:3]
        window = self.window_on(size)
        if not self.mask_padding:  # zero tokens take part as real ones, so the map as padded is the map
            x = pad_bottom_right(x, *padding_to_windows(size, window))
        return x, window

    @torch.compiler.disable
    def _attend_uncompiled(self, x: Tensor) -> Tensor:
        return self._attend(x)

    def _attend(self, x: Tensor) -> Tensor:
        if torch.compiler.is_dynamo_compiling() and self.attn.dropout:  # the one operation has none
            return self._attend_uncompiled(x)
        H, W = x.shape[1:3]
        x, window = self._padded(x)
        B, Hp, Wp, _ = x.shape
        if self.attn.fused:
            x = self.attn.on_map(x, window, shift_of((Hp, Wp), window, self.shifted))
        elif torch.compiler.is_dynamo_compiling():
            return self.attn.as_one_operation(x, (H, W), window, self.window_size, self.shifted)
        else:
            layout = window_layout(B, Hp, Wp, window, self.shifted, x.device)
            windows = self.attn(window_partition(x, layout), window, layout.groups)        # (B * nW, N, C)
            x = window_reverse(windows, layout, (Hp, Wp))
        return x[:, :H, :W]                                                                # (B, H, W, C)

    def _forward_in_pieces(self, x: Tensor) -> Tensor:
        """The two branches on pieces of the map that stay in a CPU's cache from the first product to the sum."""
        B, H, W, C = x.shape
        x, window = self._padded(x)
        layout = window_layout(*x.shape[:3], window, self.shifted, x.device)
        tokens = x.reshape(-1, C)
        out = tokens.clone()
        N = window[0] * window[1]
        windows = max(tokens_at_a_time(4 * C, x.element_size()) // N, 8)
        for gather, pads, groups in layout.pieces(windows):
            piece = tokens.index_select(0, gather).view(-1, N, C)
            branch = self.norm1(self.attn(piece, window, groups)).view(-1, C)
            out.index_add_(0, gather, branch.to(out.dtype).index_fill_(0, pads, 0))
        out = out.view(x.shape)[:, :H, :W].reshape(-1, C)
        for piece in out.split(tokens_at_a_time(self.mlp.fc1.out_features, x.element_size())):
            piece += self.norm2(self.mlp(piece))
        return out.view(B, H, W, C)


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
            ) for index, rate in enumerate(drop_path_rates))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, in_dims)`` to ``(B, ceil(H / 2), ceil(W / 2), embed_dims)``, or ``(B, H, W, embed_dims)``."""
        if self.downsample is not None:
            x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
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
            normalise the position bias and belong to the checkpoint. None: what the checkpoint of ``init_cfg`` says
            if that is a ``swinv2_mm.Pretrained``, else ``window_size``; 0 for a stage: its ``window_size``.
        mlp_ratio: Width of the MLP relative to the channels.
        qkv_bias: Learn a bias for queries and values.
        drop_rate: Dropout after the patch embedding, the projections and in the MLP.
        attn_drop_rate: Dropout of the attention probabilities.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first.
        out_indices: Stages whose features are emitted.
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
        ValueError: A value is out of range; the message names the argument, the value and the remedy.

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
    ) -> None:
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
        pretrained = windows
        if pretrained_window_sizes is None:
            pretrained_window_sizes = _windows_of_weights(init_cfg, stages)
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
            raise ValueError(f"attn_backend='triton' has no dropout, but attn_drop_rate={attn_drop_rate!r}; leave out "
                             'one of the two.')
        checkpointed = checkpointed_stages(with_cp, stages)
        if type(frozen_stages) is not int or frozen_stages not in range(-1, stages + 1):
            raise ValueError(f'frozen_stages={frozen_stages!r} must be a whole number from -1 (nothing frozen) to '
                             f'{stages}, the number of stages.')

        if is_sequence(init_cfg):  # mmengine applies them in order: none may overwrite what was loaded
            init_cfg = sorted(init_cfg, key=_fills_backbone)
        super().__init__(init_cfg)
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.num_features = dims
        self.patch_size = patch_size
        self.window_size = tuple(windows)
        self.pretrained_window_sizes = tuple(pretrained)
        self._logged: set[tuple[Pair, tuple[Pair, ...]]] = set()
        self.patch_embed = PatchEmbed(in_channels, embed_dims, patch_size)
        self.pos_drop = nn.Dropout(drop_rate)
        rates = [drop_path_rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.stages = nn.ModuleList(
            SwinTransformerV2Stage(
                in_dims=dims[max(i - 1, 0)],
                embed_dims=dims[i],
                drop_path_rates=rates[sum(depths[:i]):sum(depths[:i + 1])],
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
            ) for i in range(stages))
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
        return [self.patch_embed, self.pos_drop, *self.stages[:self.frozen_stages], *norms]

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SwinTransformerV2:
        """Switch the mode; frozen stages stay in eval, without gradients."""
        super().train(mode)
        self._freeze()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of images ``(B, in_channels, H, W)``; each is contiguous, ``(B, C, h, w)``."""
        if not torch.compiler.is_compiling():
            self._log_padding(tuple(x.shape[-2:]))
        x = self.pos_drop(self.patch_embed(x))
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f'norm{i}')(x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())  # (B, C, h, w)
        return tuple(outs)

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
                self.stages, self.num_features, self.windows_on(size), self.padding_cost(size), strict=True):
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
    return hasattr(kind, 'pretrained_window_sizes')


def _windows_of_weights(init_cfg: Any, stages: int) -> Any:
    """Ask the initialisation for the windows of its checkpoint; None if it has none or is of another kind."""
    for cfg in init_cfg if is_sequence(init_cfg) else [init_cfg]:
        if _fills_backbone(cfg):
            return WEIGHT_INITIALIZERS.parent.build(cfg).pretrained_window_sizes()[:stages]
    return None
