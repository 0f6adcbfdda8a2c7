#!/usr/bin/env python
"""Export a trained model to ONNX, as in: python tools/export.py configs/upernet_swinv2_t.py iter_9.pth out.onnx

One file takes batches of images of any size. It is compared with PyTorch at several sizes before it is there.
"""

import sys
from collections.abc import Sequence

from swinv2_mm.engine.runs.command_line import ConfigOptions, Parser, exit_code
from swinv2_mm.inference.export.exporting import export_model


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('out', help='the file to write, .onnx')
    parser.add_argument('--part', choices=['model', 'backbone'], default='model', help='all of it, or its backbone')
    parser.add_argument('--logits', action='store_true', help='a segmentor gives logits, not classes')
    parser.add_argument('--half', action='store_true', help='weights and features in float16; images stay float32')
    parser.add_argument('--window-size', type=int, nargs='+', metavar='W', help='another window: one, or one per stage')
    parser.add_argument('--tolerance', type=float, help='largest difference from PyTorch; 1e-4, with --half 3e-2')
    parser.add_argument('--force', action='store_true', help='replace OUT if it exists')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='change the config')
    export_model(**vars(parser.parse_args(argv)))


if __name__ == '__main__':
    sys.exit(exit_code(main))
