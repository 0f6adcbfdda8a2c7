#!/usr/bin/env python
"""Train a detector or a segmentor, as in: python tools/train.py configs/maskrcnn_swinv2_t.py"""

import sys
from collections.abc import Sequence

from swinv2_mm.engine.recipe.precision import PRECISIONS
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.runs.command_line import Parser, add_common_arguments, end_process, exit_code, parse, with_value
from swinv2_mm.errors import say


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='config file')
    precision = (
        'train in mixed precision: bf16 or fp16, or fp32 to switch it off; without a value, or auto, what the config '
        'says, else bf16 where the device has arithmetic for it; elsewhere fp32 on a CPU, fp16 on a GPU'
    )
    parser.add_argument('--amp', choices=PRECISIONS, metavar='TYPE', help=precision)
    parser.add_argument('--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size')
    resume = 'go on from this checkpoint; without a value, from the latest in the work dir, if there is one'
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT', help=resume)
    limit = 'save and end after this time, as 11:50:00 or 11h50m, with exit code 75; --resume goes on from there'
    parser.add_argument('--max-time', metavar='H:M:S', help=limit)
    add_common_arguments(parser)
    argv = with_value(sys.argv[1:] if argv is None else argv, '--amp', PRECISIONS, 'auto')
    runner = train(prepare_training(**parse(parser, argv)))
    say(f'Checkpoints and logs are in {runner.work_dir}')


if __name__ == '__main__':
    end_process(exit_code(main))
