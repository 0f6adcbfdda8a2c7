"""Check that the launcher started this process and left it a GPU, and how long it waits for others."""

import os
from numbers import Real

import torch
from mmengine.config import Config
from mmengine.device import get_device

from swinv2_mm.errors import UserError

# A variable that each launcher sets in the environment, and what calls the launcher.
_LAUNCHERS = {
    'pytorch': ('RANK', 'tools/dist_train.sh, tools/dist_test.sh or torchrun; for one process leave --launcher out'),
    'slurm': ('SLURM_PROCID', 'tools/slurm_train.sh, tools/slurm_test.sh or srun'),
    'mpi': ('OMPI_COMM_WORLD_RANK', 'mpirun, with MASTER_ADDR set to the first host'),
}


def check_launcher(cfg: Config, context: object = None) -> None:
    """Check that the config's launcher has set its variables, that no two processes share a GPU, and the time-out."""
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    variable, remedy = _LAUNCHERS[launcher]
    if variable not in os.environ:
        raise UserError(
            f'--launcher {launcher} needs the environment variable {variable}, which the launcher sets. Start through '
            f'{remedy}.'
        )
    if get_device() == 'cpu' and launcher == 'mpi':
        raise UserError(
            f'--launcher {launcher} needs GPUs, and this machine has none. Start through {_LAUNCHERS["pytorch"][1]}.'
        )
    timeout = ((cfg.get('env_cfg') or {}).get('dist_cfg') or {}).get('timeout')
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, Real) or timeout <= 0):
        raise UserError(
            f'env_cfg.dist_cfg.timeout={timeout!r}: say how many seconds a process waits for the others, as in 600.'
        )
    local_rank, gpus = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
    if launcher == 'pytorch' and torch.cuda.is_available() and local_rank >= gpus:
        raise UserError(
            f'{os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)} processes were started on this machine, which has '
            f'{gpus} GPU{"s" if gpus > 1 else ""}. Start one process per GPU.'
        )
