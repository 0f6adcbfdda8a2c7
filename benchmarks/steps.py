"""Measure what each optimisation brings on a CPU: the backbone without one of them at a time, taking turns.

python benchmarks/steps.py
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator
from unittest import mock

import torch
from backbone_report import title
from backbones import build
from measuring import about, new_table, print_report

from swinv2_mm.models.kernels import attention_op, choose, linear

NEVER = 2**62
# For each step the replacements that undo it: (module, name, value).
STEPS = {
    'as it is': [],
    'float32 products by MKL': [(choose, '_has_onednn', lambda: False)],
    'MLP on whole maps': [(linear, 'MIN_TOKENS', NEVER)],
    'heads of large maps at once': [(attention_op, 'FRESH_BYTES', NEVER)],
    "bias and GELU by torch's operations": [(choose, 'gelu_by_cpp', lambda *_: False)],
    "norm and residual by torch's operations": [(choose, 'norm_by_cpp', lambda *_: False)],
    "attention by torch's operations, in windows": [(choose, '_by_cpp', lambda *_: False)],
}
STEPS['none of these'] = [replaced for step in STEPS.values() for replaced in step]


@contextlib.contextmanager
def without(step: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name, value in STEPS[step]:
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def measure(side: int, window: int, mode: str, dtype: str, rounds: int) -> dict[str, list[float]]:
    model = build('ours', 'tiny', (side, side), window).train(mode == 'training')
    images = torch.rand(1, 3, side, side)
    seconds = {step: [] for step in STEPS}
    for turn in range(rounds + 1):
        for step, taken in seconds.items():
            with without(step):
                start = time.perf_counter()
                with (
                    torch.set_grad_enabled(mode == 'training'),
                    torch.autocast('cpu', torch.bfloat16, enabled=dtype == 'bfloat16'),
                ):
                    maps = model(images)
                if mode == 'training':
                    sum(features.float().square().mean() for features in maps).backward()
                    model.zero_grad()
            if turn:  # the first warms up
                taken.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='turns that each takes; default 7')
    rounds = parser.parse_args().rounds
    cases = [
        (1024, 8, 'inference', 'float32'),
        (1024, 8, 'inference', 'bfloat16'),
        (1024, 16, 'inference', 'bfloat16'),
        (512, 8, 'training', 'float32'),
        (512, 16, 'training', 'float32'),
    ]
    words = 'Seconds as it is; without a step, times as long (median over the turns)'
    names = (
        title(dict(arch='tiny', window=w, batch=1, size=f'{s}x{s}', dtype=d, mode=m, compile=False))
        for s, w, m, d in cases
    )
    table = new_table(words, '', *names)
    found = [measure(*case, rounds) for case in cases]
    for step in STEPS:
        table.add_row(
            step,
            *(
                f'{statistics.median(seconds[step]):.3f}'
                if step == 'as it is'
                else f'{statistics.median(a / b for a, b in zip(seconds[step], seconds["as it is"], strict=True)):.2f}x'
                for seconds in found
            ),
        )
    print_report(table, dict(about=about()), 130)


if __name__ == '__main__':
    main()
