"""The pre-trainings of tests/engine/runs/test_simmim_processes.py by two processes, all in one pair; run by torchrun.

Runs in a folder with the configs, and leaves work dirs there.
"""

import os
import sys

import torch

from support.tiny_simmim import NAMES
from swinv2_mm.engine.runs import build_runner, prepare_training
from swinv2_mm.engine.runs.processes import leave_processes


def main() -> None:
    for name in NAMES:
        build_runner(prepare_training(f'{name}.py', work_dir=name, launcher='pytorch')).train()
    build_runner(
        prepare_training('fsdp2.py', work_dir='fsdp2_resumed', resume='fsdp2/epoch_1.pth', launcher='pytorch')
    ).train()
    torch.distributed.barrier()
    leave_processes()


if __name__ == '__main__':
    main()
    sys.stderr.flush()
    os._exit(0)  # see sharded_trainings.py
