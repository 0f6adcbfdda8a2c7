#!/usr/bin/env python
"""Draw the curves of a training, as in: python tools/plot_run.py work_dirs/maskrcnn_swinv2_t_shapes curves.png"""

from collections.abc import Sequence

from swinv2_mm.engine.command_line import Parser, exit_code
from swinv2_mm.engine.curves import plot_run


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('work_dir', help='the work dir of the training')
    parser.add_argument('out', help='the picture to write (.png, .svg or .pdf)')
    arguments = parser.parse_args(argv)
    plot_run(arguments.work_dir, arguments.out)


if __name__ == '__main__':
    raise SystemExit(exit_code(main))
