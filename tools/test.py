#!/usr/bin/env python
"""Test a detector or a segmentor, as in: python tools/test.py configs/maskrcnn_swinv2_t.py epoch_12.pth"""

import sys
from collections.abc import Sequence
from numbers import Real

from swinv2_mm.engine.runs import prepare_test, test
from swinv2_mm.engine.runs.command_line import Parser, add_common_arguments, end_process, exit_code, parse
from swinv2_mm.errors import say


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='the weights to test')
    parser.add_argument('--out', metavar='PATH', help='save predictions: a .pkl (detection), a folder (segmentation)')
    parser.add_argument('--show', action='store_true', help='show ground truth and prediction in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='save ground truth and prediction as pictures in this folder')
    parser.add_argument('--wait-time', type=float, default=2, metavar='S', help='how long a window stays, in seconds')
    parser.add_argument('--report', action='store_true', help='write what went wrong into report.html in the work dir')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation, as in the config's tta_pipeline")
    parser.add_argument('--window-size', type=int, nargs='+', metavar='W', help='another window: one, or one per stage')
    add_common_arguments(parser)
    metrics = test(prepare_test(**parse(parser, argv)))
    for name, value in metrics.items():
        say(f'{name} {value:.4f}' if isinstance(value, Real) else f'{name} {value}', sys.stdout)


if __name__ == '__main__':
    end_process(exit_code(main))
