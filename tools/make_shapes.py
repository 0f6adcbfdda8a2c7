"""Write the shapes data set: COCO instances and semantic maps to train on within minutes."""

import argparse
import signal
import sys
import time

from rich.console import Console
from rich.progress import Progress

from swinv2_mm.datasets import OUTLINES, ShapesSpec, write_shapes


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f'error: {message}\n')


def main(argv: list[str] | None = None) -> int:
    default = ShapesSpec()
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('out', help='folder to write: absent, empty, or an earlier set')
    parser.add_argument('--seed', type=int, default=default.seed, help='another seed gives other images')
    parser.add_argument('--size', type=int, default=default.size, help='side of the images in pixels, from 32')
    parser.add_argument('--num-train', type=int, default=default.num_train, help='training images')
    parser.add_argument('--num-val', type=int, default=default.num_val, help='validation images')
    parser.add_argument('--classes', default=','.join(default.classes), help=f'out of {", ".join(OUTLINES)}')
    parser.add_argument('--force', action='store_true', help='replace an earlier set made with other arguments')
    args = parser.parse_args(argv)
    # SIGTERM ends Python on the spot; as an exception it lets the writer remove its temporary folder.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    start = time.perf_counter()
    try:
        classes = tuple(name.strip() for name in args.classes.split(',') if name.strip())
        spec = ShapesSpec(args.seed, args.size, args.num_train, args.num_val, classes)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
            task = bar.add_task('shapes', total=None)
            written = write_shapes(
                spec, args.out, args.force, lambda done, total: bar.update(task, completed=done, total=total)
            )
    except (ValueError, OSError) as error:
        refused = getattr(error, 'errno', None)  # by the system, not by write_shapes
        print(
            f'error: cannot write {args.out}: {error}; nothing was left behind' if refused else f'error: {error}',
            file=sys.stderr,
        )
        return 1 if refused else 2
    except KeyboardInterrupt:
        print('error: interrupted; nothing was left behind', file=sys.stderr)
        return 130
    counts = f'{spec.num_train} training and {spec.num_val} validation images'
    done = f'wrote {counts} to {args.out} in {time.perf_counter() - start:.1f} s'
    print(done if written else f'{args.out} is already there')
    return 0


if __name__ == '__main__':
    sys.exit(main())
