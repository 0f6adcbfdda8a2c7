#!/usr/bin/env python
"""Train a detector or a segmentor, as in: python tools/train.py configs/maskrcnn_swinv2_t.py"""

from collections.abc import Sequence

from swinv2_mm.engine.command_line import Parser, add_common_arguments, exit_code, parse
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.errors import say


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--amp', action='store_true', help='train in mixed precision, bfloat16')
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size')
    parser.add_argument(
        '--resume', nargs='?', const='auto', metavar='CHECKPOINT',
        help='go on from this checkpoint; without a value, from the latest in the work dir, if there is one',
    )  # fmt: skip
    add_common_arguments(parser)
    runner = train(prepare_training(**parse(parser, argv)))
    say(f'Checkpoints and logs are in {runner.work_dir}')


if __name__ == '__main__':
    raise SystemExit(exit_code(main))
