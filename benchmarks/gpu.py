"""What a GPU has to show, in ten minutes: tests, attention, and the backbone beside its peers.

    make gpu                        # python benchmarks/gpu.py
    make gpu DEVICE=cpu             # the same on a CPU with tiny sizes: it shows that all parts run, and no speed

The parts run one after the other, each in processes of its own, since an error of a kernel leaves a process without a
usable GPU. Each has its share of the time; what it leaves is for the next, and what did not fit is named. After each
part ``gpu_NAME.json``, ``.md`` and ``.png`` are written. The exit status is 1 if a test or a part failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from backbone_report import OURS, plot, times_of_ours, title
from backbones import PEERS, packages
from measuring import about, write

HERE = Path(__file__).resolve().parent
# The part of the time that is over when a part has to end.
ENDS = {'tests': 0.4, 'attention': 0.5, 'backbone': 0.7, 'compiled': 1.0}
STOPPED = 'stopped, since its time was over'
MARGIN = 20  # seconds that a part has to end by itself before it is stopped
# Other folders cannot be collected without mmcv, MMDetection and MMSegmentation.
TESTS = ['-m', 'gpu', *(str(HERE.parent / 'tests' / name) for name in ('gpu', 'models/kernels/gpu', 'engine/recipe'))]
SIZES = {
    'cuda': dict(size='800x1333', batch='2', windows=['8', '16', '24'], dtypes=['bfloat16', 'float16', 'float32']),
    'cpu': dict(size='32x32', batch='1', windows=['8'], dtypes=['bfloat16']),
}


def peers() -> list[str]:
    """Those of timm and Hugging Face that are installed."""
    return [name for name in ('timm', 'huggingface') if importlib.util.find_spec(PEERS[name])]


def commands(device: str, folder: Path, minutes: dict[str, float], tests: list[str]) -> dict[str, list[str]]:
    """The command of each part, which may begin something new for so many minutes; files are written to ``folder``."""
    sizes, rounds = SIZES[device], '5' if device == 'cuda' else '1'
    alike = ['--windows', *sizes['windows'], '--device', device, '--rounds', rounds]
    limited = {part: [*alike, '--minutes', str(left), '--json', str(folder / part)] for part, left in minutes.items()}
    backbone = ['--sizes', sizes['size'], '--batches', sizes['batch'], '--dtypes', 'bfloat16']
    backbone += ['--attn-backend', 'sdpa', *(['triton'] if device == 'cuda' else [])]
    backbone += ['--peers', *peers()]
    parallel = ['-n', '4'] if importlib.util.find_spec('xdist') and device == 'cuda' else []
    few = ['--peers', '--modes', 'inference'] if device == 'cpu' else []  # where compiling takes a minute for each
    script = {name: [sys.executable, str(HERE / f'{name}.py')] for name in ('attention', 'backbone')}
    return {
        'tests': [sys.executable, '-m', 'pytest', '-q', *parallel, f'--junitxml={folder / "tests"}', *tests],
        'attention': [
            *(*script['attention'], *limited['attention'], '--size', sizes['size'], '--batch', sizes['batch']),
            *('--dtypes', *sizes['dtypes']),
        ],
        'backbone': [*script['backbone'], *limited['backbone'], *backbone],
        'compiled': [*script['backbone'], *limited['compiled'], *backbone, '--compile', *few],
    }


def run_part(command: list[str], device: str, end: float) -> str | None:
    """Run a command until ``end``, a time of the clock; return what went wrong."""
    environment = dict(os.environ, SWINV2_MM_TESTS_UNTIL=str(end - MARGIN), OMP_NUM_THREADS='1')
    environment['PYTHONPATH'] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get('PYTHONPATH'))))
    if device == 'cpu':
        environment.update(CUDA_VISIBLE_DEVICES='', TRITON_INTERPRET='1')
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        code = process.wait(timeout=max(end - MARGIN / 2 - time.time(), 1))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest then reports what it has
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=MARGIN / 2)
        return STOPPED
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers, too
        process.wait()
    return None if code == 0 else f'exit status {code}'


def results_of_tests(file: Path) -> dict[str, Any]:
    """What pytest's report says: how many passed, and the others with their first line."""
    found: dict[str, Any] = dict(passed=0, failed={}, skipped={}, left_out=[])
    for case in ElementTree.parse(file).iter('testcase'):
        name = f'{case.get("classname", "").rpartition(".")[2]}::{case.get("name")}'
        outcome = next((child for child in case if child.tag in ('failure', 'error', 'skipped')), None)
        message = '' if outcome is None else ((outcome.get('message') or '').splitlines() or [''])[0][:300]
        if outcome is None:
            found['passed'] += 1
        elif outcome.tag != 'skipped':
            found['failed'][name] = message
        elif message == 'no time left':
            found['left_out'].append(name)
        else:
            found['skipped'][name] = message
    return found


def measure(device: str, minutes: float, tests: list[str]) -> Iterator[dict[str, Any]]:
    """The report after each part."""
    here = about(triton='triton', **packages(peers()))
    found: dict[str, Any] = dict(
        device=here.get('gpu', here['cpu']),
        capability=[*torch.cuda.get_device_capability()] if device == 'cuda' else None,
        torch=torch.__version__,
        about=here,
        tests=None,
        attention=[],
        attention_by_stage=[],
        rows=[],
        left_out=[],
        failed={},
    )
    start = time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, share in ENDS.items():
            end = start + 60 * minutes * share
            left = {other: max(end - MARGIN - time.time(), 0) / 60 for other in ENDS}
            print(f'--- {part}: {max(end - time.time(), 0) / 60:.1f} min', file=sys.stderr, flush=True)
            problem = run_part(commands(device, folder, left, tests)[part], device, end)
            try:
                measured = take(found, part, folder / part)
            except Exception as error:  # no file, or half of one: the other parts go on
                measured, problem = False, f'{problem or ""} {type(error).__name__}: {error}'.strip()
            # Failed tests are listed by themselves, and so is what a part that was stopped has left.
            harmless = [STOPPED, *(['exit status 1'] if part == 'tests' else [])]
            if problem and not (measured and problem in harmless):
                found['failed'][part] = problem
            if problem == STOPPED and part == 'tests':
                found['left_out'].append('tests: the one that was running, and all after it')
            yield found


def take(found: dict[str, Any], part: str, file: Path) -> bool:
    """Add what a part has found to the report; return whether there was anything."""
    if part == 'tests':
        found['tests'] = results_of_tests(file)
        found['left_out'] += found['tests'].pop('left_out')
        return True
    numbers = json.loads(file.read_text())
    found['left_out'] += numbers['left_out']
    if part == 'attention':
        found['attention'], found['attention_by_stage'] = numbers['attention'], numbers['rows']
    else:
        found['rows'] += numbers['rows']
    return bool(numbers['rows'])


def problems(found: dict[str, Any]) -> list[str]:
    """Every failure, in a line: of tests, of parts, and of our own code in a measurement, unless it says by itself that
    it cannot be used here."""
    lines = [f'{part}: {why}' for part, why in found['failed'].items()]
    if found['tests']:
        lines += [f'{name}: {why}' for name, why in found['tests']['failed'].items()]
    for row in found['rows']:
        lines += [f'{title(row)}, {name}: {why}' for name, why in row['failed'].items() if name.startswith(OURS)]
    broken = (row for row in found['attention_by_stage'] if row['failed'])
    lines += [f'{row["dtype"]} window {row["window"]}, {row["way"]}: {row["failed"]}' for row in broken]
    return [line for line in lines if 'cannot be used' not in line]


def markdown(found: dict[str, Any]) -> str:
    """The report as docs/performance.md takes it."""
    where = ', '.join(f'{key} {value}' for key, value in found['about'].items() if key != 'gpu')
    lines = [f'### {found["device"]}', '', f'`{found["command"]}` ({where}).', '']
    if found['tests']:
        tests = found['tests']
        lines += [
            f'Tests: {tests["passed"]} passed, {len(tests["failed"])} failed, {len(tests["skipped"])} skipped.',
            '',
        ]
        reasons = Counter((why, name.partition('[')[0]) for name, why in tests['skipped'].items())
        lines += [f'- skipped: {name} ({count}): {why}' for (why, name), count in reasons.items()]
        lines += [''] if tests['skipped'] else []
    lines += ['Attention of all blocks of SwinV2-T with its projections, milliseconds:', '']
    lines += table(
        ['window', 'type', 'pass', 'sdpa', 'triton', 'triton : sdpa'], map(attention_cells, found['attention'])
    )
    names = list(dict.fromkeys(name for row in found['rows'] for name in (*row['seconds'], *row['failed'])))
    lines += ['', 'The backbone: ours (`sdpa`) in milliseconds and GiB, the others as multiples of both:', '']
    lines += table(['', *names], ([title(row), *(backbone_cell(row, name) for name in names)] for row in found['rows']))
    for what, listed in {'Failed': problems(found), 'No time was left for': found['left_out']}.items():
        grouped = Counter(line.partition('[')[0] for line in listed) if what != 'Failed' else dict.fromkeys(listed, 1)
        cases = [line + (f' ({count})' if count > 1 else '') for line, count in grouped.items()]
        lines += ['', f'{what}:', '', *(f'- {line}' for line in cases)] if cases else []
    return '\n'.join(lines) + '\n'


def table(head: list[str], rows: Any) -> list[str]:
    lines = ['| ' + ' | '.join(cells) + ' |' for cells in (head, ['---'] * len(head), *rows)]
    return lines if len(lines) > 2 else ['(nothing)']


def attention_cells(row: dict[str, Any]) -> list[str]:
    ours, triton = row['sdpa_ms'], row['triton_ms']
    ratio = f'{triton / ours:.2f}' if ours and triton else '–'
    times = ('–' if time is None else f'{time:.2f}' for time in (ours, triton))
    return [str(row['window']), row['dtype'], row['pass'], *times, ratio]


def backbone_cell(row: dict[str, Any], name: str) -> str:
    if name not in row['seconds']:
        return 'fails' if name in row['failed'] else '–'
    if name == OURS:
        return f'{1000 * sorted(row["seconds"][name])[len(row["seconds"][name]) // 2]:.1f} ({row["gib"][name]:.2f})'
    ratio = times_of_ours(row).get(name)
    gib = row['gib'][name] / row['gib'][OURS] if row['gib'].get(OURS) else None
    return '–' if ratio is None else f'{ratio:.2f}' + (f' ({gib:.2f})' if gib else '')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', choices=['cuda', 'cpu'], help='cpu: tiny sizes, to try this script')
    parser.add_argument('--minutes', type=float, default=10, help='for all; default 10')
    parser.add_argument('--out', metavar='DIR', help='default: benchmarks/results, for a CPU work_dirs')
    parser.add_argument('--tests', default=shlex.join(TESTS), metavar='ARGS', help="pytest's arguments, in quotes")
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit(
            'benchmarks/gpu.py needs a CUDA GPU, and there is none; --device cpu (make gpu DEVICE=cpu) tries it out.'
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the part that is running ends, too
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, by the parts, too
    command = shlex.join(['python', 'benchmarks/gpu.py', *sys.argv[1:]])
    for found in measure(args.device, args.minutes, shlex.split(args.tests)):
        found = dict(command=command, **found)
        name = re.sub(r'\W+', '_', found['device'].lower()).strip('_') if args.device == 'cuda' else 'cpu'
        file = Path(args.out or (HERE / 'results' if args.device == 'cuda' else 'work_dirs'), f'gpu_{name}.json')
        write(file, json.dumps(found, indent=1) + '\n')
        write(file.with_suffix('.md'), markdown(found))
        plot(found, file.with_suffix('.png'))
    print(file.with_suffix('.md').read_text())
    print(f'{file}, .md and .png')
    return int(bool(problems(found)))


if __name__ == '__main__':
    sys.exit(main())
