"""The trainings of test_deepspeed.py that need two processes and DeepSpeed, all in one pair; run by torchrun.

Runs in a folder with the configs, and leaves work dirs there, and ``bytes.json``, {stage: {'parameters': n,
'optimizer': n}} of the process that holds more.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from swinv2_mm.engine.runs import build_runner, prepare_training
from swinv2_mm.engine.runs.processes import leave_processes
from swinv2_mm.errors import UserError

ZERO = 'strategy.config.zero_optimization'


def run(config, work_dir, stage=None, resume=None, **options):
    options = {name.replace('__', '.'): value for name, value in options.items()}
    options |= {f'{ZERO}.stage': stage} if stage else {}
    cfg = prepare_training(config, work_dir=work_dir, resume=resume, cfg_options=options, launcher='pytorch')
    runner = build_runner(cfg)
    runner.train()
    return runner


def bytes_held(runner):
    """What this process keeps of parameters, and of the optimizer's copies of them and its state, between two steps."""
    states = runner.model.model.basic_optimizer.state
    held = {
        'parameters': [getattr(p, 'ds_tensor', p) for p in runner.model.module.parameters()],
        'optimizer': [tensor for copy, state in states.items() for tensor in (copy, *state.values())],
    }
    return {name: sum(tensor.nbytes for tensor in tensors) for name, tensors in held.items()}


def main():
    offload = {f'{ZERO}.offload_{what}.device'.replace('.', '__'): 'cpu' for what in ('optimizer', 'param')}
    twice = {'optim_wrapper__accumulative_counts': 2}
    start = {'load_from': 'rich_ddp/epoch_1.pth', 'auto_scale_lr__enable': True}
    held = {}
    run('rich_ddp.py', 'rich_ddp')
    run('plain_ddp.py', 'plain_ddp')
    run('twice_ddp.py', 'twice_ddp', **twice)
    run('start_ddp.py', 'start_ddp', **start)
    for stage in (1, 2, 3):
        run('rich_deepspeed.py', f'rich_{stage}', stage)
        run('rich_deepspeed_again.py', f'rich_{stage}_resumed', stage, resume=f'rich_{stage}/epoch_1.pth')
        mine = torch.tensor(list(bytes_held(run('tiny_deepspeed.py', f'tiny_{stage}', stage)).values()))
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)
        held[stage] = dict(zip(('parameters', 'optimizer'), mine.tolist(), strict=True))
    run('plain_deepspeed.py', 'plain_offload', 3, **offload)
    run('twice_deepspeed.py', 'twice_deepspeed', 2, **twice)
    run('start_deepspeed.py', 'start_deepspeed', 3, **start)
    run('half_deepspeed.py', 'half_deepspeed', 2)
    with pytest.raises(UserError, match='by 2 processes at ZeRO stage 2; it cannot be resumed by 2 at stage 3'):
        run('rich_deepspeed.py', 'refused', 3, resume='rich_2/epoch_1.pth')
    if torch.distributed.get_rank() == 0:
        Path('bytes.json').write_text(json.dumps(held))
    torch.distributed.barrier()
    leave_processes()


if __name__ == '__main__':
    main()
    sys.stderr.flush()
    os._exit(0)  # as in sharded_trainings.py
