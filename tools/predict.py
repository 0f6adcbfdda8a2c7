#!/usr/bin/env python
"""Predict on pictures, folders, videos or a camera with a trained detector or segmentor.

python tools/predict.py work_dirs/maskrcnn_swinv2_t/epoch_12.pth photos holiday.mp4 --out predictions
"""

import argparse
import sys
from collections.abc import Sequence

from swinv2_mm.engine.recipe.precision import PRECISIONS
from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, end_process, exit_code, with_value
from swinv2_mm.errors import UserError, say
from swinv2_mm.inference import predict
from swinv2_mm.inference.folder import passed_over


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage='%(prog)s [CONFIG] CHECKPOINT INPUT [INPUT ...] [options]',
    )
    given = 'the config of the run (else the one in the checkpoint), the checkpoint, and pictures, folders with all '
    parser.add_argument('given', nargs='+', metavar='...', help=given + 'below, globs, videos, numbers of cameras')
    parser.add_argument('--out', default='predictions', metavar='DIR', help='default: predictions')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, metavar='S', help='leave out objects below; default 0.3'
    )
    parser.add_argument(
        '--batch-size', type=int, default=1, metavar='N', help='pictures of one size at once; default 1'
    )
    parser.add_argument('--device', help='as cpu or cuda:1; default: the best one')
    precision = 'mixed precision: bf16, fp16; without a value, or auto, what the device computes fast'
    parser.add_argument('--amp', choices=PRECISIONS, metavar='TYPE', help=precision)
    parser.add_argument('--window-size', type=int, nargs='+', metavar='W', help='another window: one, or one per stage')
    parser.add_argument(
        '--tile', type=int, metavar='SIZE', help='predict on larger pictures in tiles of so many pixels'
    )
    parser.add_argument('--overlap', type=float, default=0.2, metavar='SHARE', help='of two tiles; default 0.2')
    parser.add_argument('--no-pictures', action='store_true', help='write data and maps alone')
    parser.add_argument('--report', action='store_true', help='write report.html, a page to look at')
    parser.add_argument('--force', action='store_true', help='replace what is in DIR, in the place of keeping it')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    argv = with_value(sys.argv[1:] if argv is None else argv, '--amp', PRECISIONS, 'auto')
    options = vars(parser.parse_args(argv))
    given = options.pop('given')
    config = given.pop(0) if given[0].endswith(('.py', '.json', '.yaml', '.yml')) else None
    if len(given) < 2:
        raise UserError(f'{"an input" if given else "the checkpoint"} is missing. {parser.prog} --help explains all.')
    window = options.pop('window_size')
    result = predict(
        given[0],
        given[1:],
        config=config,
        window_size=window[0] if window and len(window) == 1 else window,
        pictures=not options.pop('no_pictures'),
        **options,
    )
    images = result.content['images']
    say(f'{len(images)} pictures and frames, {result.kept} inputs kept: {result.folder}', sys.stdout)
    if result.failed:
        raise UserError(
            f'{len(result.failed)} inputs were passed over, all others are predicted: {passed_over(result.failed)}. '
            'Repair them; the same command then predicts on these alone.'
        )


if __name__ == '__main__':
    end_process(exit_code(main))
