"""Compare the costs of windows at an image size.

python tools/window_report.py configs/maskrcnn_swinv2_t.py --shape 800 1333
"""

import argparse
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from swinv2_mm.checkpoints.windows import plain
from swinv2_mm.engine.checks.model import build_model
from swinv2_mm.engine.config import read_config
from swinv2_mm.engine.config.batches import input_size
from swinv2_mm.engine.costs import check_backbone, image_shape
from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, exit_code
from swinv2_mm.errors import UserError

WINDOWS = (7, 8, 12, 14, 16, 20, 24, 32, 40, 48)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('--shape', type=int, nargs='+', metavar='PIXELS', help="rows and columns; default the config's")
    parser.add_argument('--windows', type=int, nargs='+', default=WINDOWS, metavar='W', help='windows to compare')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    args = parser.parse_args(argv)
    cfg = read_config(args.config, args.cfg_options)
    backbone = check_backbone(cfg.model)
    shape = image_shape(args.shape, input_size(cfg))
    if min(args.windows) < 1:
        raise UserError(f'--windows {args.windows}: windows are whole numbers from 1.')
    print_report(backbone, shape, args.windows)


def print_report(cfg: dict, shape: tuple[int, int], windows: Sequence[int]) -> None:
    """Print the costs of the config's window and of others, fixed and balanced."""
    model = build_model({**cfg, 'init_cfg': None}, 'model.backbone')  # counting needs no weights
    own = model.window_size
    title = f'{shape[0]} x {shape[1]} pixels: tokens computed per real one, by stage, and multiply-adds of one image'
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify='left')
    for column in ('window', 'fixed', 'GMAC', 'balanced', 'GMAC', 'balanced windows, by stage'):
        table.add_column(column, justify='right' if column == 'GMAC' else 'left', no_wrap=True)
    work = {}
    for window in (own, *windows):
        cells = []
        for fit in ('fixed', 'balanced'):
            model.set_window_size(window)
            model.set_window_fit(fit)
            work[window, fit] = sum(model.multiply_adds(shape)) / 1e9
            cells += [' '.join(f'{cost:.2f}' for cost in model.padding_cost(shape)), f'{work[window, fit]:.1f}']
        used = ' '.join(f'{rows}x{cols}' for _, (rows, cols) in model.windows_on(shape))
        name = f'{plain(own)} (config)' if window is own else str(window)
        table.add_row(name, *cells, used)
    console = Console(highlight=False)
    console.width = max(console.width, 130)
    console.print(table)
    saved = 1 - work[own, 'balanced'] / work[own, 'fixed']
    if cfg.get('window_fit', 'fixed') == 'fixed' and saved > 0.005:
        console.print(f"window_fit='balanced' with the window of the config computes {saved:.0%} less.")


if __name__ == '__main__':
    sys.exit(exit_code(main))
