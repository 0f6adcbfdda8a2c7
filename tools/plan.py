"""Will a training fit? Peak memory of each process by what it consists of, and the fastest setting that fits.

python tools/plan.py configs/maskrcnn_swinv2_b_w16to32_1536.py --gpus 8 --gpu-memory 80
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from rich.console import Console
from rich.progress import track

from swinv2_mm.engine.config import read_config
from swinv2_mm.engine.costs.plan import GIB, plan, work_of
from swinv2_mm.engine.costs.plan.sizes import plan_sizes
from swinv2_mm.engine.costs.plan.table import (
    MEMORIES,
    advice,
    largest_table,
    settings_table,
    sizes_table,
    traffic_table,
)
from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, exit_code
from swinv2_mm.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of a training')
    parser.add_argument('--gpus', type=int, default=8, metavar='N', help='processes, of all machines; default 8')
    parser.add_argument('--gpu-memory', type=float, default=80, metavar='GIB', help='of each GPU; default 80')
    parser.add_argument('--shape', type=int, nargs='+', metavar='PIXELS', help="rows and columns; default the config's")
    parser.add_argument('--batch', type=int, metavar='N', help="images of a process; default the config's")
    parser.add_argument('--objects', type=int, default=20, metavar='N', help='in an image, of detectors; default 20')
    parser.add_argument('--sizes', action='store_true', help='plan the published sizes T to G, too; takes minutes')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    args = parser.parse_args(argv)
    if args.gpus < 1:
        raise UserError(f'--gpus: expected the number of processes, 1 or more, not {args.gpus}.')
    if not args.gpu_memory > 0:
        raise UserError(f'--gpu-memory: expected GiB of a GPU, as 80, not {args.gpu_memory:g}.')
    cfg = read_config(args.config, args.cfg_options, 'train')
    work = work_of(cfg, args.shape, args.batch, args.objects)
    show = Console(highlight=False)
    show.width = max(show.width, 132)
    found = plan(cfg, args.gpus, args.gpu_memory * GIB, work, bar('settings'))
    show.print(settings_table(found))
    for line in advice(found, args.config):
        show.print(line, soft_wrap=True)
    if args.gpus > 1:
        show.print()
        show.print(traffic_table(found))
    if args.sizes:
        sizes = plan_sizes(cfg, args.gpus, work, bar('sizes'))
        show.print(sizes_table(sizes, args.gpus))
        show.print(largest_table(sizes, (*MEMORIES, args.gpu_memory)))


def bar(name: str) -> Callable:
    """A progress bar on stderr."""
    return partial(track, description=name, console=Console(stderr=True))


if __name__ == '__main__':
    sys.exit(exit_code(main))
