#!/usr/bin/env python
"""Draw a training, or several on the same axes, as in: python tools/plot_run.py work_dirs/maskrcnn_swinv2_t_shapes"""

from collections.abc import Sequence

from swinv2_mm.engine.display.report import plot_runs
from swinv2_mm.engine.runs.command_line import Parser, exit_code
from swinv2_mm.errors import say


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='work_dir', help='the work dir of a training')
    parser.add_argument('--out', metavar='FILE', help='a .png, .svg or .pdf; default: report.png in the work dir')
    arguments = parser.parse_args(argv)
    say(f'The picture is {plot_runs(arguments.work_dirs, arguments.out)}')


if __name__ == '__main__':
    raise SystemExit(exit_code(main))
