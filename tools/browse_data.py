#!/usr/bin/env python
"""Show what a run will see of its data: counts per class, what is left out and why, and a page of annotated pictures.

python tools/browse_data.py configs/maskrcnn_swinv2_t_shapes.py
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from swinv2_mm.engine.census.page import write_page
from swinv2_mm.engine.census.table import census_table
from swinv2_mm.engine.checks import DATA, run_checks
from swinv2_mm.engine.config import read_config
from swinv2_mm.engine.display.loading import swaps_channels
from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, exit_code
from swinv2_mm.errors import UserError, say

SPLITS = ('train', 'val', 'test')


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, help='default: train and val')
    parser.add_argument('--pictures', type=int, default=50, metavar='N', help='of each data set; 0 writes no page')
    parser.add_argument('--out', metavar='FILE', help='the page; default work_dirs/<config>/data.html')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    args = parser.parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    splits = args.splits or [split for split in SPLITS[:2] if cfg.get(f'{split}_dataloader')]
    absent = [split for split in splits if not cfg.get(f'{split}_dataloader')]
    if absent:
        raise UserError(f'--splits {absent[0]}: {args.config} has no {absent[0]}_dataloader.')
    context = run_checks(cfg, splits, DATA, most=None, track=progress)
    if not context.censuses:
        raise UserError(f'{args.config}: no data set of MMDetection, MMSegmentation or pictures alone is on this disk.')
    table = census_table(context.censuses, whole=True)
    say(table, sys.stdout)
    for warning in (warning for census in context.censuses for warning in census.warnings):
        say(f'warning: {warning}')
    if args.pictures > 0:
        out = Path(args.out or Path('work_dirs', Path(args.config).stem, 'data.html'))
        datasets = {census.name: context.datasets[census.key] for census in context.censuses}
        write_page(out, Path(args.config).stem, datasets, table, args.pictures, swaps_channels(cfg))
        say(f'\nPictures with their annotations are in {out}', sys.stdout)


def progress(entries: Sequence[dict]) -> Iterator[dict]:
    """Show how many maps were read."""
    console = Console(stderr=True)
    yield from track(entries, 'maps', console=console, disable=not console.is_terminal, transient=True)


if __name__ == '__main__':
    sys.exit(exit_code(main))
