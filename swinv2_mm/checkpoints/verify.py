"""Verify converted weights against the source's own package, and report what happened to every key."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.checkpoints.geometry import shorten
from swinv2_mm.checkpoints.load import Loaded
from swinv2_mm.errors import UserError

# Allowed difference in float32, relative to the largest value; a wrong window or tensor gives more than a tenth.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Difference:
    """The result of a verification.

    Attributes:
        peer: The package compared with; None if it is unknown or not installed.
        largest: The largest absolute difference over all feature maps.
        scale: The largest absolute value in them.
        image: Side of the image, in pixels.
    """

    peer: str | None
    largest: float | None
    scale: float
    image: int

    def as_dict(self) -> dict[str, Any]:
        """The result in plain values, and in words."""
        words = f'loads strictly, runs at {self.image} pixels, all finite'
        if self.peer:
            words += f'; largest difference from {self.peer} {self.largest:.1e} (largest value {self.scale:.1f})'
        else:
            words += '; not compared: files of Hugging Face and timm are, where their package is installed'
        return dict(peer=self.peer, largest=self.largest, scale=self.scale, image=self.image, words=words)


def compare_with_peer(backbone: nn.Module, loaded: Loaded) -> Difference:
    """Load weights strictly into a backbone, run it, and compare it with the source's own package.

    Args:
        backbone: A ``swinv2_mm.SwinTransformerV2`` in eval mode, with the windows of the checkpoint and all outputs.
        loaded: The checkpoint.

    Raises:
        UserError: The weights do not fit the backbone, its features are not finite, or they differ.
    """
    weights = loaded.conversion.weights
    fresh = {key: value for key, value in backbone.state_dict().items() if key.split('.')[0] in loaded.conversion.new}
    try:
        backbone.load_state_dict({**fresh, **weights}, strict=True)
    except RuntimeError as error:
        raise UserError(f'--verify: the backbone does not take the weights: {error}') from error
    geometry = loaded.conversion.geometry
    stages = len(geometry.depths)
    side = loaded.windows[-1][0] * geometry.patch_size * 2 ** (stages - 1)  # the training's image, if it was square
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, geometry.in_channels, side, side, generator=generator)
    with torch.inference_mode():
        maps = backbone(image)
        if not all(bool(features.isfinite().all()) for features in maps):
            raise UserError('--verify: the features are not finite; the weights are damaged.')
        peer = _PEERS.get(loaded.conversion.layout)
        theirs = peer(loaded, image, side) if peer else None
        scale = max(float(features.abs().max()) for features in maps)
        if theirs is None:
            return Difference(None, None, scale, side)
        name, features = theirs
        norms = [getattr(backbone, f'norm{i}') for i in range(stages)]
        normed = [norm(x).permute(0, 3, 1, 2) for norm, x in zip(norms, features, strict=True)]
        largest = max(float((a - b).abs().max()) for a, b in zip(maps, normed, strict=True))
    if largest > TOLERANCE * scale:
        raise UserError(
            f'--verify: the feature maps differ from those of {name} by {largest:.1e}; the largest value '
            f'is {scale:.1f}. Nothing was written: the weights would not compute what they should.'
        )
    return Difference(name, largest, scale, side)


def _bare(loaded: Loaded) -> dict[str, Tensor]:
    """The source's tensors under its own names, without the prefix, in float32."""
    prefix = loaded.conversion.prefix
    return {
        key[len(prefix) :]: tensor.float()
        for key, tensor in loaded.original.items()
        if key.startswith(prefix) and tensor.is_floating_point()
    }


def _shared(loaded: Loaded) -> dict[str, Any]:
    """The arguments that Hugging Face and timm give the same name."""
    geometry = loaded.conversion.geometry
    return dict(
        depths=list(geometry.depths),
        num_heads=list(geometry.num_heads),
        window_size=max(rows for rows, _ in loaded.windows),
        pretrained_window_sizes=[rows for rows, _ in loaded.pretrained_window_sizes or loaded.windows],
        mlp_ratio=geometry.mlp_ratio,
        qkv_bias=geometry.qkv_bias,
    )


def _huggingface(loaded: Loaded, image: Tensor, side: int) -> tuple[str, list[Tensor]] | None:
    try:
        import transformers
        from transformers import Swinv2Config, Swinv2Model
    except ImportError:
        return None
    geometry = loaded.conversion.geometry
    model = Swinv2Model(
        Swinv2Config(
            image_size=side,
            patch_size=geometry.patch_size,
            num_channels=geometry.in_channels,
            embed_dim=geometry.embed_dims,
            **_shared(loaded),
        ),
        add_pooling_layer=False,
    ).eval()
    missing, _ = model.load_state_dict(_bare(loaded), strict=False)
    if any('layernorm.' not in key and 'relative_' not in key for key in missing):
        return None
    taken: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: taken.append(out[1])) for layer in model.encoder.layers]
    model(image)
    for hook in hooks:
        hook.remove()
    sides = [side // geometry.patch_size // 2**i for i in range(len(geometry.depths))]
    features = [x.unflatten(1, (n, n)) for x, n in zip(taken, sides, strict=True)]
    return f'transformers {transformers.__version__}', features


def _timm(loaded: Loaded, image: Tensor, side: int) -> tuple[str, list[Tensor]] | None:
    try:
        import timm
        from timm.models.swin_transformer_v2 import SwinTransformerV2
    except (ImportError, RuntimeError):  # torchvision beside another torch fails with the latter
        return None
    geometry = loaded.conversion.geometry
    model = SwinTransformerV2(
        img_size=side,
        patch_size=geometry.patch_size,
        in_chans=geometry.in_channels,
        num_classes=0,
        embed_dim=geometry.embed_dims,
        **_shared(loaded),
    ).eval()
    missing, _ = model.load_state_dict(_bare(loaded), strict=False)
    if any(not key.startswith('norm.') and 'relative_' not in key for key in missing):
        return None
    x = model.patch_embed(image)
    features = [x := layer(x) for layer in model.layers]
    return f'timm {timm.__version__}', features


_PEERS = {'huggingface': _huggingface, 'timm': _timm}

# Default arguments of the backbone.
_USUAL = dict(in_channels=3, patch_size=4, mlp_ratio=4.0, qkv_bias=True)


def account(
    loaded: Loaded, dst: Path, target: str | None, lost: list[str], difference: Difference | None
) -> dict[str, Any]:
    """Collect the report of a conversion, in plain values.

    Args:
        loaded: The converted checkpoint.
        dst: The file that was written.
        target: The layout of the written file, None for ours.
        lost: Our names that have no place in this layout.
        difference: The result of the verification, if there was one.
    """
    conversion = loaded.conversion
    arguments = conversion.geometry.arguments()
    if len(conversion.geometry.depths) != 4:
        arguments['out_indices'] = tuple(range(len(conversion.geometry.depths)))
    dtypes = Counter(str(tensor.dtype).removeprefix('torch.') for tensor in conversion.weights.values())
    return dict(
        meta=loaded.meta(),
        source_file=str(loaded.source.path),
        destination=str(dst),
        target=target or 'openmmlab',
        prefix=conversion.prefix,
        container=loaded.container,
        windows_told_by=loaded.told_by,
        arguments={name: value for name, value in arguments.items() if _USUAL.get(name) != value},
        dtypes=dict(dtypes),
        loaded=len(conversion.weights),
        sources={ours: list(theirs) for ours, theirs in conversion.sources.items()},
        dropped=conversion.dropped,
        lost=lost,
        missing=conversion.new,
        verified=difference.as_dict() if difference is not None else None,
    )


def print_report(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    meta = report['meta']
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title_justify='left', title=report['destination'])
    table.add_column(no_wrap=True, style='bold')
    table.add_column(overflow='fold')
    where = f', under {report["container"]!r}' if report['container'] else ''
    where += f', prefix {report["prefix"]!r}' if report['prefix'] else ''
    size = meta['arch'] or f'embed_dims={meta["embed_dims"]}, depths={meta["depths"]}, num_heads={meta["num_heads"]}'
    table.add_row('from', f'{meta["source"]} ({meta["source_layout"]}{where})')
    table.add_row('sha256', meta['source_sha256'])
    table.add_row('model', size)
    if meta['window_size']:
        table.add_row('window_size', f'{meta["window_size"]} when it was trained; yours may be any')
    table.add_row(
        'pretrained_window_sizes',
        f'{meta["pretrained_window_sizes"]} (from {report["windows_told_by"]}); belongs to the weights',
    )
    table.add_row('loaded', f'{report["loaded"]} tensors ({", ".join(report["dtypes"])})')
    table.add_row('renamed', str(sum(theirs != [ours] for ours, theirs in report['sources'].items())))
    reasons: dict[str, list[str]] = {}
    for key, reason in report['dropped'].items():
        reasons.setdefault(reason, []).append(key)
    if report['lost']:
        reasons[f'{report["target"]} has no place for it'] = report['lost']
    for reason, keys in reasons.items():
        table.add_row('dropped', f'{len(keys)} ({reason}): {shorten(keys, 3)}')
    if report['missing']:
        table.add_row('missing', f'{", ".join(report["missing"])}: new in a dense backbone, they start untrained')
    if report['verified'] is not None:
        table.add_row('verified', report['verified']['words'])
    Console(highlight=False, markup=False, emoji=False).print(table)  # a path may look like markup
    if report['target'] == 'openmmlab':
        size = ', '.join(f'{name}={value!r}' for name, value in report['arguments'].items())
        print(
            f"backbone=dict(type='swinv2_mm.SwinTransformerV2', {size},\n"
            f'              pretrained_window_sizes={meta["pretrained_window_sizes"]},\n'
            f"              init_cfg=dict(type='Pretrained', checkpoint={report['destination']!r}))"
        )
