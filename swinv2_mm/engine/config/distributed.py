"""Starting processes: what mmengine's start-up assumes of GPUs, made to hold on a machine without one."""

import os
from datetime import timedelta

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


def check_launcher(launcher: str) -> None:
    """Check that this process was started by the launcher that it was told of, and has a device of its own.

    Raises:
        UserError: It was not, or has not.
    """
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


def this_run() -> str | None:
    """What torchrun calls this run, also after it has restarted its processes; None where it was not told."""
    name = os.environ.get('TORCHELASTIC_RUN_ID', 'none')
    return None if name == 'none' else name


def was_restarted() -> bool:
    """Whether torchrun has started this run's processes again, after it had lost one."""
    return int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0


def start_processes(cfg: Config) -> None:
    """Join the other processes where mmengine cannot: over gloo, on a machine without a GPU.

    ``init_dist`` sets a CUDA device and the default wrapper names one; with the group already there and the wrapper
    spelled out, mmengine's runner does the rest. With a GPU everything is left to it.

    Args:
        cfg: Edited in place: ``model_wrapper_cfg`` for a model on the CPU.
    """
    if cfg.get('launcher', 'none') != 'pytorch' or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout) if timeout else None)
    wrapper = cfg.get('model_wrapper_cfg')
    if wrapper is None:  # mmengine's default, less the device
        wrapper = {
            'type': 'MMDistributedDataParallel',
            'broadcast_buffers': False,
            'find_unused_parameters': cfg.get('find_unused_parameters', False),
        }
    cfg.model_wrapper_cfg = dict(wrapper, device_ids=None)


def leave_processes() -> None:
    """Close the group of processes, if there is one; torch warns of resources left behind otherwise."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
