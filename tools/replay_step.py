#!/usr/bin/env python
"""Repeat a step that was not finite, as in: python tools/replay_step.py work_dirs/my_fruits/non_finite_iter_120.pth"""

from collections.abc import Sequence

from swinv2_mm.engine.diagnosis.non_finite import describe
from swinv2_mm.engine.diagnosis.step_dump import replay_step
from swinv2_mm.engine.runs.command_line import Parser, exit_code


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument('dump', help='the file that the training left')
    step, trace = replay_step(parser.parse_args(argv).dump)
    print(f'{step.where}; the outputs up to the first that is not finite:\n')
    print(f'{"smallest":>12} {"largest":>12} {"finite":>8}  module')
    for output in trace.outputs:
        print(f'{output.low:12.4g} {output.high:12.4g} {output.finite:8.2%}  {output.name}')
    print(f'\n{describe(trace)}')


if __name__ == '__main__':
    raise SystemExit(exit_code(main))
