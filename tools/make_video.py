#!/usr/bin/env python
"""Make a video of pictures, to try a model on, as in: python tools/make_video.py data/shapes/images shapes.mp4"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from swinv2_mm.engine.runs.command_line import Parser, exit_code
from swinv2_mm.errors import say
from swinv2_mm.inference.videos import make_video


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('folder', help='of the pictures, with all below')
    parser.add_argument('out', help='the video, a file that ends in .mp4')
    parser.add_argument('--side', type=int, default=640, metavar='N', help='pixels of the longer side')
    parser.add_argument('--fps', type=float, default=10.0, metavar='N', help='frames per second')
    parser.add_argument('--hold', type=int, default=10, metavar='N', help='frames of each picture')
    args = parser.parse_args(argv)
    number = make_video(args.folder, Path(args.out).expanduser(), args.side, args.fps, args.hold)
    say(f'{number} frames: {args.out}', sys.stdout)


if __name__ == '__main__':
    sys.exit(exit_code(main))
