"""Joining and leaving the group of processes of a distributed run, with or without a GPU."""

import os
import subprocess
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device


def start_processes(cfg: Config) -> None:
    """Join the other processes over gloo on a machine without a GPU, and give the config a wrapper without a device.

    mmengine's own start and its default wrapper name a CUDA device; with a GPU, they do it.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'slurm':
        _take_from_slurm()
    if launcher not in ('pytorch', 'slurm') or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout) if timeout else None)
    unused = cfg.get('find_unused_parameters', False)
    default = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or default, device_ids=None)


def _take_from_slurm() -> None:
    """Tell torch what srun has told this process.

    mmengine does the same on machines with GPUs, with one port for all jobs, two of which may share a node.
    """
    job = int(os.environ['SLURM_JOB_ID']) * 7 + int(os.environ.get('SLURM_STEP_ID', 0))
    os.environ.setdefault('MASTER_PORT', str(20000 + job % 10000))
    if 'MASTER_ADDR' not in os.environ:
        names = ['scontrol', 'show', 'hostnames', os.environ['SLURM_STEP_NODELIST']]
        os.environ['MASTER_ADDR'] = subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()[0]
    for name, slurms in (('RANK', 'PROCID'), ('LOCAL_RANK', 'LOCALID'), ('WORLD_SIZE', 'NTASKS')):
        os.environ[name] = os.environ[f'SLURM_{slurms}']


def leave_processes() -> None:
    """Close the group of processes, if there is one; otherwise torch warns of leaked resources."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
