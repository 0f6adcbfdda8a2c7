"""The report of benchmarks/backbone.py as a table and a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from measuring import new_table, print_report

OURS, EAGER = 'ours', 'ours eager'


def title(case: dict[str, Any]) -> str:
    return f'{case["arch"]} w{case["window"]} {case["batch"]}x{case["size"]} {case["dtype"]} {case["mode"]}' + (
        ' compiled' if case['compile'] else ''
    )


def times_of_ours(row: dict[str, Any]) -> dict[str, float]:
    """How many times as long each peer takes: the median over the turns, each divided by ours of the same turn."""
    ours = row['seconds'].get('ours', [])
    return {
        name: statistics.median(theirs / mine for theirs, mine in zip(taken, ours, strict=True))
        for name, taken in row['seconds'].items()
        if name != 'ours' and ours
    }


def show(found: dict[str, Any]) -> None:
    """Print the report: seconds of ours, ratios of the others to it, peaks."""
    names = list(dict.fromkeys(name for row in found['rows'] for name in (*row['seconds'], *row['failed'])))
    peers = [name for name in names if name != 'ours']
    words = f'Seconds (peak GiB); for peers as multiples of ours. Processor: {found["about"].get("kind", "unknown")}'
    table = new_table(words, '', 'ours', *peers, 'best peer', 'products alone', 'maps')
    for row in found['rows']:
        gib, ratios, cells = row.get('gib') or {}, times_of_ours(row), []
        for name in names:
            if name not in row['seconds']:
                cells.append('fails')
            elif name not in ratios:
                median = statistics.median(row['seconds'][name])
                cells.append(f'{median:.3f}' + (f' ({gib[name]:.2f})' if gib.get(name) else ''))
            else:
                more = f' ({gib[name] / gib["ours"]:.2f}x)' if gib.get(name) and gib.get('ours') else ''
                cells.append(f'{ratios[name]:.2f}x{more}')
        theirs = [ratio for name, ratio in ratios.items() if not name.startswith(OURS)]
        best = f'{min(theirs):.2f}x' if theirs else ''
        table.add_row(title(row), *cells, best, f'{row["floor"]["seconds"]:.3f}', f'{row["floor"]["gib"]:.2f} GiB')
    print_report(table, found, 140)


def plot(found: dict[str, Any], path: Path) -> None:
    """Speed of the peers and of the products alone, relative to ours."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    rows = [row for row in found['rows'] if 'ours' in row['seconds']]
    names = list(dict.fromkeys(name for row in rows for name in row['seconds']))
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.12 * len(rows) * (len(names) + 1)))
    height = 0.85 / (len(names) + 1)
    for i, name in enumerate([*names, 'products alone']):
        values = []
        for row in rows:
            ratios = dict(times_of_ours(row), ours=1)
            ratios['products alone'] = row['floor']['seconds'] / statistics.median(row['seconds']['ours'])
            values.append(ratios.get(name, 0))
        axis.barh(
            [j + i * height for j in range(len(rows))],
            values,
            height,
            label=name,
            color='0.8' if name == 'products alone' else f'C{i}',
        )
    axis.set_yticks([j + 0.4 for j in range(len(rows))], [title(row) for row in rows], fontsize=7)
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.axvline(1, color='black', linewidth=0.6)
    axis.set_xlabel('time relative to ours: shorter is faster')
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
