"""Verify converted weights against the source's own package, and report what happened to every key."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swinv2_mm.checkpoints.convert import Rest
from swinv2_mm.checkpoints.load import Loaded
from swinv2_mm.errors import UserError, listed

# Allowed difference in float32, relative to the largest value; a wrong window or tensor gives more than a tenth.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Difference:
    """The result of a verification: ``largest`` is the largest absolute difference over all feature maps, ``scale`` the
    largest absolute value in them, ``image`` the side of the image in pixels. Without a ``peer`` nothing is compared.
    """

    peer: str | None
    largest: float | None
    scale: float
    image: int

    def words(self) -> str:
        """The result in a sentence."""
        compared = 'not compared: files of Hugging Face are, where transformers is installed'
        if self.peer:
            compared = f'largest difference from {self.peer} {self.largest:.1e} (largest value {self.scale:.1f})'
        return f'loads strictly, runs at {self.image} pixels, all finite; {compared}'


def compare_with_peer(backbone: nn.Module, loaded: Loaded) -> Difference:
    """Load weights strictly into a backbone, run it, and compare files of Hugging Face with its own package.

    Args:
        backbone: A ``swinv2_mm.SwinTransformerV2`` in eval mode, with the windows of the checkpoint and all outputs.
        loaded: The checkpoint.

    Raises:
        UserError: The weights do not fit the backbone, its features are not finite, or they differ.
    """
    conversion = loaded.conversion
    geometry = conversion.geometry
    fresh = {key: value for key, value in backbone.state_dict().items() if key.split('.')[0] in conversion.new}
    try:
        backbone.load_state_dict({**fresh, **conversion.weights}, strict=True)
    except RuntimeError as error:
        raise UserError(f'--verify: the backbone does not take the weights: {error}') from error
    stages = len(geometry.depths)
    side = loaded.windows[-1][0] * geometry.patch_size * 2 ** (stages - 1)  # the training's image, if it was square
    image = torch.randn(1, geometry.in_channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = backbone(image)
        if not all(bool(features.isfinite().all()) for features in maps):
            raise UserError('--verify: the features are not finite; the weights are damaged.')
        scale = max(float(features.abs().max()) for features in maps)
        theirs = _features_of_hugging_face(loaded, image) if conversion.layout == 'huggingface' else None
        if theirs is None:
            return Difference(None, None, scale, side)
        peer, features = theirs
        norms = [getattr(backbone, f'norm{i}') for i in range(stages)]
        normed = [norm(x).permute(0, 3, 1, 2) for norm, x in zip(norms, features, strict=True)]
        largest = max(float((a - b).abs().max()) for a, b in zip(maps, normed, strict=True))
    if largest > TOLERANCE * scale:
        raise UserError(
            f'--verify: the feature maps differ from those of {peer} by {largest:.1e}; the largest value '
            f'is {scale:.1f}. Nothing was written: the weights would not compute what they should.'
        )
    return Difference(peer, largest, scale, side)


def _features_of_hugging_face(loaded: Loaded, image: Tensor) -> tuple[str, list[Tensor]] | None:
    """The package and its maps before the norms, ``(B, H, W, C)``, from the source's own tensors."""
    try:
        import transformers
    except ImportError:
        return None
    geometry, prefix = loaded.conversion.geometry, loaded.conversion.prefix
    config = transformers.Swinv2Config(
        image_size=image.shape[-1],
        patch_size=geometry.patch_size,
        num_channels=geometry.in_channels,
        embed_dim=geometry.embed_dims,
        depths=list(geometry.depths),
        num_heads=list(geometry.num_heads),
        window_size=max(rows for rows, _ in loaded.windows),
        pretrained_window_sizes=[rows for rows, _ in loaded.pretrained_window_sizes or loaded.windows],
        mlp_ratio=geometry.mlp_ratio,
        qkv_bias=geometry.qkv_bias,
    )
    model = transformers.Swinv2Model(config, add_pooling_layer=False).eval()
    own = {key.removeprefix(prefix): tensor for key, tensor in loaded.original.items() if key.startswith(prefix)}
    floats = {key: tensor.float() for key, tensor in own.items() if tensor.is_floating_point()}
    missing, _ = model.load_state_dict(floats, strict=False)
    if any('layernorm.' not in key and 'relative_' not in key for key in missing):
        return None
    taken: list[Tensor] = []
    for layer in model.encoder.layers:
        layer.register_forward_hook(lambda _, __, out: taken.append(out[1]))
    model(image)
    sides = [image.shape[-1] // geometry.patch_size // 2**i for i in range(len(geometry.depths))]
    return f'transformers {transformers.__version__}', [
        x.unflatten(1, (n, n)) for x, n in zip(taken, sides, strict=True)
    ]


def account(
    loaded: Loaded, dst: Path, target: str | None, rest: Rest | None, lost: list[str], difference: Difference | None
) -> dict[str, Any]:
    """Collect the report of a conversion to the file ``dst``, in plain values.

    ``target`` is the layout that was written, None for ours; ``rest`` is what was written beside the backbone; ``lost``
    are our names that have no place in the layout.
    """
    conversion = loaded.conversion
    arguments = conversion.geometry.arguments()
    stages = len(conversion.geometry.depths)
    if rest or stages != 4:
        arguments['out_indices'] = (stages - 1,) if rest else tuple(range(stages))
    sources, dropped = conversion.sources, conversion.dropped
    if rest:
        sources = {f'backbone.{ours}': theirs for ours, theirs in sources.items()}
        sources |= {ours: (theirs,) for ours, theirs in rest.sources.items()}
        dropped = {key: reason for key, reason in dropped.items() if key not in rest.sources.values()}
    return dict(
        meta=loaded.meta(),
        source_file=str(loaded.source.path),
        destination=str(dst),
        target=target or 'openmmlab',
        prefix=conversion.prefix,
        container=loaded.container,
        windows_told_by=loaded.told_by,
        arguments=arguments,
        dtypes=dict(Counter(str(tensor.dtype).removeprefix('torch.') for tensor in conversion.weights.values())),
        loaded=len(sources),
        model=rest and rest.model,
        sources=sources,
        dropped=dropped,
        lost=lost,
        missing=[] if rest else conversion.new,  # a whole model emits its last map only
        verified=None if difference is None else asdict(difference) | dict(words=difference.words()),
    )


def print_report(report: dict[str, Any]) -> None:
    """Print a report as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    meta = report['meta']
    where = f', under {report["container"]!r}' if report['container'] else ''
    where += f', prefix {report["prefix"]!r}' if report['prefix'] else ''
    size = meta['arch'] or f'embed_dims={meta["embed_dims"]}, depths={meta["depths"]}, num_heads={meta["num_heads"]}'
    rows = [
        ('from', f'{meta["source"]} ({meta["source_layout"]}{where})'),
        ('sha256', meta['source_sha256']),
        ('model', size),
        ('window_size', meta['window_size'] and f'{meta["window_size"]} when it was trained; yours may be any'),
        (
            'pretrained_window_sizes',
            f'{meta["pretrained_window_sizes"]} (from {report["windows_told_by"]}); belongs to the weights',
        ),
        ('loaded', f'{report["loaded"]} tensors ({", ".join(report["dtypes"])})'),
        ('renamed', str(sum(theirs != (ours,) for ours, theirs in report['sources'].items()))),
    ]
    reasons: dict[str, list[str]] = {}
    for key, reason in report['dropped'].items():
        reasons.setdefault(reason, []).append(key)
    reasons |= {f'{report["target"]} has no place for it': report['lost']} if report['lost'] else {}
    rows += [('dropped', f'{len(keys)} ({reason}): {listed(keys, 3)}') for reason, keys in reasons.items()]
    new = ', '.join(report['missing'])
    rows += [
        ('missing', new and f'{new}: new in a dense backbone, they start untrained'),
        ('verified', report['verified'] and report['verified']['words']),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_header=False, title_justify='left', title=report['destination'])
    table.add_column(no_wrap=True, style='bold')
    table.add_column(overflow='fold')
    for row in rows:
        if row[1]:
            table.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(table)  # a path may look like markup
    if report['target'] == 'openmmlab':
        print(_config_of(report))


def _config_of(report: dict[str, Any]) -> str:
    """The lines of a config that use a file in our layout."""
    size = ', '.join(f'{name}={value!r}' for name, value in report['arguments'].items())
    indent, checkpoint = '\n              ', repr(report['destination'])
    backbone = f"backbone=dict(type='swinv2_mm.SwinTransformerV2', {size},{indent}"
    backbone += f'pretrained_window_sizes={report["meta"]["pretrained_window_sizes"]}'
    if report['model']:
        return f'{backbone})\nload_from={checkpoint}'
    return f"{backbone},{indent}init_cfg=dict(type='Pretrained', checkpoint={checkpoint}))"
