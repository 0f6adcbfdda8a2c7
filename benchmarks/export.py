"""Time of exported SwinV2 backbones: ours, timm's and Hugging Face's, in ONNX Runtime and OpenVINO.

    python benchmarks/export.py --folder /tmp/exported --json benchmarks/results/export.json

Ours is one file for all sizes. The peers' are exported for the size of the case, since their windows belong to it. All
of a case are loaded and then take turns (A B C A B C ...), so that a machine that slows down slows down all of them; of
two calls in a turn the second counts. Given are the median of ours in PyTorch, and for the others the median over the
turns of their time divided by it. All compute in float32. Images of 800x1333 are padded to multiples of 32.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from backbones import available, build, packages
from measuring import about, new_table, print_report, report

from swinv2_mm.inference.export.graph import example, write_graph
from swinv2_mm.inference.export.parts import BackbonePart
from swinv2_mm.inference.export.verify import session

EAGER, OURS_FIXED = 'ours, PyTorch', 'ours, OpenVINO, size fixed'
RUNTIMES = {'onnxruntime': 'ONNX Runtime', 'openvino': 'OpenVINO'}
Call = Callable[[np.ndarray], Any]


def size_of(case: dict[str, Any]) -> tuple[int, int]:
    H, W = (-(-int(side) // 32) * 32 for side in case['size'].split('x'))
    return H, W


def exported(name: str, case: dict[str, Any], folder: Path) -> Path:
    """The file of a backbone, written if it is not in the folder."""
    size = size_of(case)
    what = f'{name}_{case["arch"]}_{case["window"]}' + ('' if name == 'ours' else f'_{size[0]}x{size[1]}')
    path = folder / f'{what}.onnx'
    if path.exists():
        return path
    print(f'exporting {what}', file=sys.stderr, flush=True)
    torch.manual_seed(0)
    model = build(name, case['arch'], size, case['window']).eval()
    partial = path.with_suffix('.part')
    if name == 'ours':
        part = BackbonePart(model)
        write_graph(part, example(model), part.outputs, {}, partial)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            images = (torch.rand(1, 3, *size),)
            torch.onnx.export(model, images, str(partial), dynamo=True, external_data=False, verbose=False)
    return partial.replace(path)


def in_onnxruntime(path: Path) -> Call:
    running = session(path)
    name = running.get_inputs()[0].name
    return lambda images: running.run(None, {name: images})


def in_openvino(path: Path, size: tuple[int, int] | None = None) -> Call:
    """With ``size``, made for images of that size alone, as the peers' files are."""
    import openvino

    # Its default is bfloat16 where the processor has it.
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': torch.get_num_threads()}
    model = openvino.Core().read_model(str(path))
    if size is not None:
        model.reshape([1, 3, *size])
    compiled = openvino.Core().compile_model(model, 'CPU', options)
    return lambda images: compiled([images])


def in_pytorch(case: dict[str, Any]) -> Call:
    torch.manual_seed(0)
    model = build('ours', case['arch'], size_of(case), case['window']).eval()

    def call(images: np.ndarray) -> Any:
        with torch.inference_mode():
            return model(torch.from_numpy(images))

    return call


def take_turns(
    names: list[str], runtimes: list[str], case: dict[str, Any], rounds: int, folder: Path, clock: Callable[[], float]
) -> dict[str, Any]:
    """``seconds`` of each call by a clock, and why those ``failed`` that did."""
    load = {'onnxruntime': in_onnxruntime, 'openvino': in_openvino}
    ways = {EAGER: lambda: in_pytorch(case)}
    for runtime in runtimes:
        for name in names:
            ways[f'{name}, {RUNTIMES[runtime]}'] = lambda n=name, r=runtime: load[r](exported(n, case, folder))
    if 'openvino' in runtimes:
        ways[OURS_FIXED] = lambda: in_openvino(exported('ours', case, folder), size_of(case))
    images = np.random.default_rng(0).random((1, 3, *size_of(case)), dtype=np.float32)
    calls, failed = {}, {}
    for way, make in ways.items():
        try:
            calls[way] = make()
            calls[way](images)
        except Exception as error:  # a peer, or a runtime, that cannot take it
            calls.pop(way, None)
            failed[way] = f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
    seconds = {way: [] for way in calls}
    for _ in range(rounds):
        for way, call in calls.items():
            call(images)  # what had to wait for its turn has lost caches
            start = clock()
            call(images)
            seconds[way].append(clock() - start)
    return dict(seconds=seconds, failed=failed)


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The report after every case."""
    peers = args.peers if args.peers is not None else [n for n in available() if n in ('timm', 'huggingface')]
    here = about(**packages(peers), **{runtime: runtime for runtime in args.runtimes}, onnx='onnx')
    here |= dict(note=args.note) if args.note else {}
    clock = time.process_time if args.cpu_time else time.perf_counter
    here['clock'] = 'processor time' if args.cpu_time else 'wall time'
    cases = [dict(arch=args.arch, window=w, size=s) for w in args.windows for s in args.sizes]
    rows = []
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(args.folder or spare)
        folder.mkdir(parents=True, exist_ok=True)
        for done, case in enumerate(cases):
            print(f'{done}/{len(cases)}; now window {case["window"]}, {case["size"]}', file=sys.stderr, flush=True)
            rows.append(dict(case, **take_turns(['ours', *peers], args.runtimes, case, args.rounds, folder, clock)))
            yield dict(about=here, rows=rows)


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """The median over the turns of each one's time divided by that of ours in PyTorch."""
    base = row['seconds'][EAGER]
    return {
        way: statistics.median(mine / ours for mine, ours in zip(taken, base, strict=True))
        for way, taken in row['seconds'].items()
    }


def show(found: dict[str, Any]) -> None:
    ways = list(dict.fromkeys(way for row in found['rows'] for way in (*row['seconds'], *row['failed'])))
    table = new_table('Time of exported backbones', 'window', 'image', f'{EAGER}, ms', *ways[1:], left=('image',))
    for row in found['rows']:
        found_ratios = ratios(row)
        cells = [f'{found_ratios[way]:.2f}' if way in found_ratios else 'failed' for way in ways[1:]]
        table.add_row(str(row['window']), row['size'], f'{1000 * statistics.median(row["seconds"][EAGER]):.0f}', *cells)
    print_report(table, found, 40 + 24 * len(ways))
    for row in found['rows']:
        for way, why in row['failed'].items():
            print(f'window {row["window"]}, {row["size"]}, {way} failed: {why}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='tiny', choices=['tiny', 'small', 'base'], help='size')
    parser.add_argument('--windows', type=int, nargs='+', default=[8, 16], help='windows in tokens')
    parser.add_argument('--sizes', nargs='+', default=['512x512', '800x1333'], metavar='HxW')
    parser.add_argument('--runtimes', nargs='+', default=list(RUNTIMES), choices=list(RUNTIMES))
    parser.add_argument('--peers', nargs='*', choices=['timm', 'huggingface'], help='default: all that import')
    parser.add_argument('--rounds', type=int, default=7, help='turns that each takes; default 7')
    parser.add_argument('--folder', metavar='DIR', help='where the exported files are kept; default: nowhere')
    parser.add_argument('--cpu-time', action='store_true', help="processor time, which others' work disturbs less")
    parser.add_argument('--note', help='words for the report, as on other work of the machine')
    parser.add_argument('--json', metavar='FILE', help='write the numbers to this file, too')
    args = parser.parse_args()
    report(measure(args), show, args.json)


if __name__ == '__main__':
    main()
