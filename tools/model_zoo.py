"""Write docs/model_zoo.md from the configs, or count the parameters and FLOPs of one config.

python tools/model_zoo.py
python tools/model_zoo.py configs/maskrcnn_swinv2_t.py --shape 800 1333
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.engine.config import read_config
from swinv2_mm.engine.costs import build_on_meta, complexity, image_shape
from swinv2_mm.engine.costs.model_zoo import PAGE, giga, millions, page, prediction_size
from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, exit_code
from swinv2_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', help=f'config file to count; without one {PAGE} is written')
    parser.add_argument('--shape', type=int, nargs='+', metavar='PIXELS', help="rows and columns; default the config's")
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    args = parser.parse_args(argv)
    if args.config:
        count(args)
    elif args.shape or args.cfg_options:
        raise UserError('--shape and --cfg-options belong to a config; name one.')
    else:
        console = Console(stderr=True)
        text = page(ROOT, lambda models: track(models, 'configs', console=console))
        with replacing(ROOT / PAGE) as partial:
            partial.write_text(text)
        console.print(f'wrote {PAGE}')


def count(args: argparse.Namespace) -> None:
    """Print the costs of a config's model, stage by stage."""
    cfg = read_config(args.config, args.cfg_options)
    shape = image_shape(args.shape, prediction_size(cfg))
    model = build_on_meta(cfg.model, cfg.default_scope)
    cost = complexity(model, shape)
    title = '{} x {} pixels: multiply-adds (papers: FLOPs)'.format(*cost.size)
    table = Table('', 'map', 'window', box=box.SIMPLE_HEAD, title=title, title_justify='left')
    for column in ('1e9 multiply-adds', '1e6 parameters'):
        table.add_column(column, justify='right', no_wrap=True)
    for i, (size, window) in enumerate(model.backbone.windows_on(cost.size)):
        table.add_row(f'stage {i + 1}', '{}x{}'.format(*size), '{}x{}'.format(*window), giga(cost.stages[i]), '')
    table.add_row('backbone', '', '', giga(cost.backbone), millions(cost.backbone_parameters))
    table.add_row('heads', '', '', giga(cost.heads), millions(cost.parameters - cost.backbone_parameters))
    table.add_row('model', '', '', giga(cost.total), millions(cost.parameters))
    Console(highlight=False, width=100).print(table)


if __name__ == '__main__':
    sys.exit(exit_code(main))
