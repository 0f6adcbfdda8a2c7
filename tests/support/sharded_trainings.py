"""The trainings of tests/engine/sharding by two processes, all in one pair of them; run by torchrun.

Runs in a folder with the configs, and leaves work dirs there; ``bytes.json``, {mode: {'parameters': n,
'optimizer': n}} of the process that holds more; and ``metrics.json``, those of a test by both processes.
"""

import json
import os
import sys
from pathlib import Path

import torch
from mmengine.runner import Runner
from torch.distributed.tensor import DTensor

from swinv2_mm.engine.runs import build_runner, prepare_test, prepare_training
from swinv2_mm.engine.runs.processes import leave_processes


def run(config: str, work_dir: str, resume: str | None = None) -> Runner:
    cfg = prepare_training(config, work_dir=work_dir, resume=resume, launcher='pytorch')
    runner = build_runner(cfg)
    runner.train()
    return runner


def bytes_held(runner: Runner) -> dict[str, int]:
    """What this process keeps of parameters and of the optimizer's state, between two steps."""
    optimizer = runner.optim_wrapper.optimizer
    states = getattr(optimizer, 'optim', optimizer).state.values()
    held = {
        'parameters': [*runner.model.parameters()],
        'optimizer': [value for state in states for value in state.values()],
    }
    return {name: sum(here(tensor).nbytes for tensor in tensors) for name, tensors in held.items()}


def here(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def main() -> None:
    held = {}
    for mode in ('ddp', 'zero1', 'fsdp2'):
        run(f'plain_{mode}.py', f'plain_{mode}')
        run(f'rich_{mode}.py', f'rich_{mode}')
        mine = torch.tensor(list(bytes_held(run(f'tiny_{mode}.py', f'tiny_{mode}')).values()))
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        held[mode] = dict(zip(('parameters', 'optimizer'), mine.tolist(), strict=True))
    for mode in ('zero1', 'fsdp2'):
        run(f'rich_{mode}_again.py', f'rich_{mode}_resumed', resume=f'rich_{mode}/epoch_1.pth')
        run(f'plain_{mode}_from_one.py', f'plain_{mode}_from_one', resume='plain_one/epoch_1.pth')
    run('bfloat16_fsdp2.py', 'bfloat16_fsdp2')
    run('offload_fsdp2.py', 'offload_fsdp2')
    cfg = prepare_test('rich_fsdp2.py', 'rich_fsdp2/epoch_2.pth', work_dir='tested', launcher='pytorch')
    metrics = build_runner(cfg).test()
    if torch.distributed.get_rank() == 0:
        Path('bytes.json').write_text(json.dumps(held))
        Path('metrics.json').write_text(json.dumps({name: float(value) for name, value in metrics.items()}))
    torch.distributed.barrier()
    leave_processes()


if __name__ == '__main__':
    main()
    # After a dozen runners on one group of processes an interpreter now and then aborts while it shuts down
    # ("terminate called without an active exception"), when all is done and written.
    sys.stderr.flush()
    os._exit(0)
