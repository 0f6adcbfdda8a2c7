"""Check that the launcher started this process and left it a GPU."""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device

from swinv2_mm.errors import UserError

# What each launcher sets in the environment.
_VARIABLES = {
    'pytorch': 'RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT',
    'slurm': 'SLURM_PROCID SLURM_NTASKS SLURM_NODELIST',
    'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_RANK MASTER_ADDR',
}
_REMEDY = {
    'pytorch': 'Start through tools/dist_train.sh, dist_test.sh or torchrun; for one process leave --launcher out.',
    'slurm': 'Start through tools/slurm_train.sh, slurm_test.sh or srun.',
    'mpi': 'Start through mpirun, with MASTER_ADDR set to the first host.',
}


def check_launcher(cfg: Config, context: object = None) -> None:
    """Check the environment variables of the config's launcher, and that no two processes share a GPU."""
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    missing = [name for name in _VARIABLES[launcher].split() if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs the environment variable{"s" if len(missing) > 1 else ""} '
            f'{", ".join(missing)}, which the launcher sets. {_REMEDY[launcher]}'
        )
    if get_device() == 'cpu' and launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs, and this machine has none. {_REMEDY["pytorch"]}')
    local_rank, gpus = int(os.environ.get('LOCAL_RANK', 0)), torch.cuda.device_count()
    if launcher == 'pytorch' and torch.cuda.is_available() and local_rank >= gpus:
        raise UserError(
            f'{os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)} processes were started on this machine, which has '
            f'{gpus} GPU{"s" if gpus > 1 else ""}. Start one process per GPU.'
        )
