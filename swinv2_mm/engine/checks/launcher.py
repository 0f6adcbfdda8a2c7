"""Check that the launcher started this process and left it a GPU."""

import os

import torch
from mmengine.config import Config
from mmengine.device import get_device

from swinv2_mm.errors import UserError

_ENVIRONMENT = {
    'pytorch': ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK', 'MASTER_ADDR'),
}
_STARTED_BY = {
    'pytorch': 'Start through tools/dist_train.sh or tools/dist_test.sh, or through torchrun; for a single process '
    'leave --launcher out.',
    'slurm': 'Start through tools/slurm_train.sh or tools/slurm_test.sh, or through srun.',
    'mpi': 'Start through mpirun, with MASTER_ADDR set to the first host.',
}


def check_launcher(cfg: Config, run: object = None) -> None:
    """Check the environment variables of the config's launcher, and that no two processes share a GPU."""
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none':
        return
    missing = [name for name in _ENVIRONMENT[launcher] if name not in os.environ]
    if missing:
        raise UserError(
            f'--launcher {launcher} needs the environment variable{"s" if len(missing) > 1 else ""} '
            f'{", ".join(missing)}, which the launcher sets. {_STARTED_BY[launcher]}'
        )
    if get_device() == 'cpu' and launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs, and this machine has none. {_STARTED_BY["pytorch"]}')
    if launcher == 'pytorch' and torch.cuda.is_available():
        local_rank, gpus = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if local_rank >= gpus:
            raise UserError(
                f'{os.environ.get("LOCAL_WORLD_SIZE", local_rank + 1)} processes were started on this machine, which '
                f'has {gpus} GPU{"s" if gpus > 1 else ""}. Start one process per GPU.'
            )
