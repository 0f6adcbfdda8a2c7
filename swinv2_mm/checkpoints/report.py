"""Report what happened to every key of a converted checkpoint, as a table and as data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from swinv2_mm.checkpoints.geometry import shorten
from swinv2_mm.checkpoints.load import Loaded
from swinv2_mm.checkpoints.verify import Difference

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
