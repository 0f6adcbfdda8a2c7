"""Time and memory of SwinV2 backbones, ours against every peer that imports, side by side.

    python benchmarks/backbone.py --json benchmarks/results/backbone.json --plot benchmarks/results/backbone.png

All backbones of a case are built, each in a process of its own, warmed up, and then take turns (A B C A B C ...), so
that a machine that slows down slows down all of them. A turn is two calls, of which the second counts; on a GPU the
mean of five further calls. Given are our
median, and for peers the median over the turns of their time divided by ours. Images of 800x1333 are padded to
multiples of 32, as MMDetection pads a batch. A training step is forward, a loss over all maps, and backward. Peak
memory is that of one call, above the built model: resident memory on a CPU, allocated memory on a GPU.

The floor is the time of the matrix products alone, each repeated in the better of two ways on data at hand, and beside
it the bytes of activations that one reading and writing of every block's map moves.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from backbone_report import EAGER, OURS, plot, show, title
from backbones import PEERS, available, build, packages
from measuring import GIB, Deadline, PeakMemory, about, report, seconds

SHORT = dict(arch=['tiny'], windows=[8, 16], sizes=['512x512'], batches=[1], dtypes=['float32'], rounds=3)
Case = dict[str, Any]


def images_of(case: Case) -> torch.Tensor:
    H, W = (-(-int(side) // 32) * 32 for side in case['size'].split('x'))
    return torch.rand(case['batch'], 3, H, W, device=case['device'])


def backbone(name: str, case: Case) -> Callable[[torch.Tensor], None]:
    """One call of a backbone as the case wants it."""
    torch.manual_seed(0)
    images = images_of(case)
    code, _, backend = name.partition(' ')
    ours = dict(attn_backend=case['attn_backend'] if name in (OURS, EAGER) else backend) if code == OURS else {}
    model = build(code, case['arch'], tuple(images.shape[2:]), case['window'], **ours).to(case['device'])
    model.train(case['mode'] == 'training')
    call = torch.compile(model) if case['compile'] and name != EAGER else model
    dtype = getattr(torch, case['dtype'])
    autocast = contextlib.nullcontext if dtype == torch.float32 else lambda: torch.autocast(case['device'], dtype)

    def run(images: torch.Tensor) -> None:
        if case['mode'] == 'training':
            with autocast():
                maps = call(images)
            sum(features.float().square().mean() for features in maps).backward()
            model.zero_grad(set_to_none=True)
        else:
            with torch.inference_mode(), autocast():
                call(images)

    return run


class Worker:
    """A backbone in a process of its own, which makes two calls when told to, and takes the time of the second.

    In one process the memory that one backbone frees would serve, or fragment, the next one's: what a call takes would
    depend on whose turn was before.

    Attributes:
        gib: Peak memory of one call, above the built model.
        failed: Why there will be no further call, or None.
    """

    def __init__(self, name: str, case: Case, microsoft: str | None = None) -> None:
        command = [sys.executable, __file__, '--worker', name, json.dumps(case)]
        self._process = subprocess.Popen(
            command + (['--microsoft', microsoft] if microsoft else []),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.failed: str | None = None
        self.gib: float | None = None

    def warm_up(self) -> None:
        """Let the backbone make its first calls, and wait for it."""
        self.gib = self._ask().get('gib')

    def call(self) -> float | None:
        """The seconds that it took."""
        return self._ask().get('seconds')

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):
            print(file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else dict(failed='its process ended, perhaps for want of memory')
        self.failed = answer.get('failed')
        return answer


def work(name: str, case: Case) -> None:
    """What the process of a :class:`Worker` does."""
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)  # what a peer prints is no answer

    def answer(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        run, images = backbone(name, case), images_of(case)
        sys.stdin.readline()
        gib = peak(run, images)
        run(images)
        give_back()
        answer(gib=gib)
        for _ in sys.stdin:
            run(images)  # what had to wait for its turn has lost caches and memory
            taken = seconds(lambda: run(images), case['device'], runs=5 if images.is_cuda else 1)
            give_back()
            answer(seconds=taken)
    except Exception as error:  # a peer that cannot take a size, or out of memory: the others go on
        answer(failed=f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}')


def give_back() -> None:
    """To the system what this process has freed, so that others can have it in their turns; glibc keeps some."""
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def peak(run: Callable[[torch.Tensor], None], images: torch.Tensor) -> float:
    """GiB that the first call takes; on a GPU the second, since the first tries algorithms."""
    if images.is_cuda:
        run(images)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(images)
        return (torch.cuda.max_memory_allocated() - before) / GIB
    memory = PeakMemory()
    run(images)
    return memory.above() / GIB


def take_turns(names: list[str], case: Case, rounds: int, microsoft: str | None = None) -> dict[str, Any]:
    """``seconds`` of each call and ``gib`` of each backbone, and why those ``failed`` that did."""
    workers = {}
    try:
        for name in names:  # they are built at the same time
            workers[name] = Worker(name, case, microsoft)
        # One at a time, since a call of a large case can take half of the memory; but compiling takes minutes.
        together = case['compile'] and case['device'] == 'cuda' and torch.cuda.mem_get_info()[0] > 40 * GIB
        with ThreadPoolExecutor(len(names) if together else 1) as pool:
            list(pool.map(Worker.warm_up, workers.values()))
        taken = {name: [] for name in names}
        for _ in range(rounds):
            for name, worker in workers.items():
                if worker.failed is None:
                    taken[name].append(worker.call())
    finally:
        for worker in workers.values():
            worker.stop()
    failed = {name: worker.failed for name, worker in workers.items() if worker.failed is not None}
    whole = [name for name in names if name not in failed]
    return dict(
        seconds={name: taken[name] for name in whole}, gib={name: workers[name].gib for name in whole}, failed=failed
    )


def products(case: Case) -> tuple[list[tuple[int, int, int, int]], int]:
    """The matrix products ``(count, M, K, N)`` of a forward pass, and the numbers in all maps read and written."""
    model = build('ours', case['arch'], (32, 32), case['window'])
    size = images_of(case).shape[2:]
    counts, moved = [], 0
    for stage, C, ((H, W), window), cost in zip(
        model.stages, model.num_features, model.windows_on(size), model.padding_cost(size), strict=True
    ):
        tokens, padded = case['batch'] * H * W, round(case['batch'] * H * W * cost)
        N, depth = window[0] * window[1], len(stage.blocks)
        counts += [
            (depth, padded, C, 3 * C),
            (depth, padded, C, C),
            (depth, tokens, C, 4 * C),
            (depth, tokens, 4 * C, C),
            (depth * padded // N * (C // 32), N, 32, N),
            (depth * padded // N * (C // 32), N, N, 32),
        ]
        moved += 2 * depth * tokens * C
    return counts, moved


def floor(case: Case) -> dict[str, float]:
    """Seconds of the products alone (thrice for a training step), and GiB of the maps that must move."""
    dtype, total = getattr(torch, case['dtype']), 0.0
    counts, moved = products(case)
    gpu = case['device'] == 'cuda'  # which needs large products, and many at a time
    with torch.inference_mode():
        for count, M, K, N in counts:
            rows = M if gpu else min(M, 4096)
            batch = min(count, 1024 if gpu else 16) if M == N or K == M else 1  # attention's many small products
            x = torch.rand(batch, rows, K, device=case['device'], dtype=dtype)
            w = torch.rand(batch, N, K, device=case['device'], dtype=dtype)
            ways = [lambda x=x, w=w: torch.bmm(x, w.transpose(1, 2))]
            if batch == 1 and case['device'] == 'cpu':
                ways.append(lambda x=x, w=w: F.conv2d(x[None].permute(0, 3, 1, 2), w[0, :, :, None, None]))
            times = [min(seconds(way, case['device'], 10 if gpu else 1) for _ in range(5)) for way in ways]
            total += min(times) / (batch * rows) * count * M
    passes = 3 if case['mode'] == 'training' else 1
    return dict(seconds=passes * total, gib=passes * moved * x.element_size() / GIB)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report before and after every case, with what is left to do on stderr."""
    peers = args.peers if args.peers is not None else available(args.microsoft)
    backend, *others = args.attn_backend
    names = [OURS, *([EAGER] if args.compile else []), *(f'{OURS} {other}' for other in others), *peers]
    alike = dict(compile=args.compile, device=args.device, attn_backend=backend)
    cases = [
        dict(arch=a, window=w, size=s, batch=b, mode=m, dtype=d, **alike)
        for a, s, b, w, m, d in itertools.product(
            args.arch, args.sizes, args.batches, args.windows, args.modes, args.dtypes
        )
    ]
    rows, here = [], about(**packages(peers))
    if args.resume and args.json and Path(args.json).exists():
        before = json.loads(Path(args.json).read_text())
        others = [f'{key} {value}' for key, value in before['about'].items() if here.get(key, value) != value]
        if others:
            raise SystemExit(
                f'{args.json} was measured with {", ".join(others)}. Two machines do not belong into one '
                'file: give --json another.'
            )
        rows, here = before['rows'], before['about'] | here
    cases = [case for case in cases if all(any(row[key] != case[key] for key in case) for row in rows)]
    start, deadline, left_out = time.monotonic(), Deadline(args.minutes), [*map(title, cases)]
    yield dict(about=here, rows=rows, left_out=left_out)
    for done, case in enumerate(cases):
        if deadline.over():
            return
        left = f', about {(time.monotonic() - start) / done * (len(cases) - done) / 60:.0f} min left' if done else ''
        print(f'{done}/{len(cases)}{left}; now {title(case)}', file=sys.stderr, flush=True)
        rows.append(dict(case, **take_turns(names, case, args.rounds, args.microsoft), floor=floor(case)))
        left_out = left_out[1:]
        yield dict(about=here, rows=rows, left_out=left_out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', nargs='+', default=['tiny'], choices=['tiny', 'small', 'base'], help='sizes')
    parser.add_argument('--windows', type=int, nargs='+', default=[8, 16, 24], help='windows in tokens')
    parser.add_argument('--sizes', nargs='+', default=['800x1333', '1024x1024', '512x512'], metavar='HxW')
    parser.add_argument('--batches', type=int, nargs='+', default=[1], help='images at a time; 1, 2 and 8 are usual')
    parser.add_argument('--modes', nargs='+', default=['inference', 'training'], choices=['inference', 'training'])
    parser.add_argument(
        '--dtypes',
        nargs='+',
        default=['float32', 'bfloat16'],
        choices=['float32', 'bfloat16', 'float16'],
        help='float32, or autocast',
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile all of them; ours runs eagerly, too')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', choices=['cpu', 'cuda'])
    backends = ['auto', 'sdpa', 'cpp', 'triton']
    parser.add_argument(
        '--attn-backend', nargs='+', default=['auto'], choices=backends, help='of ours, beside each other'
    )
    parser.add_argument('--rounds', type=int, default=5, help='turns that each takes; default 5')
    parser.add_argument('--peers', nargs='*', choices=list(PEERS), help='default: all that import')
    parser.add_argument('--microsoft', metavar='DIR', help="a checkout of Microsoft's Swin-Transformer")
    parser.add_argument('--minutes', type=float, metavar='M', help='begin no further case after this time')
    parser.add_argument('--resume', action='store_true', help='keep the rows of --json, measure the cases not in it')
    parser.add_argument('--short', action='store_true', help='the form of make bench: a minute or two')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    parser.add_argument('--plot', metavar='FILE', help='draw them into this file')
    parser.add_argument('--worker', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        if args.microsoft:
            sys.path.insert(0, args.microsoft)
        work(args.worker[0], json.loads(args.worker[1]))
        return
    if args.short:
        vars(args).update(SHORT)
    report(measure(args), show, args.json, plot, args.plot)


if __name__ == '__main__':
    main()
