"""Joining and leaving the group of processes of a distributed run, with or without a GPU."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device

from swinv2_mm.engine.config.distributed import address_here, interface_of, on_several_machines
from swinv2_mm.engine.mmengine_internals import calling_after_joining
from swinv2_mm.engine.runs.neighbours import forget, meet

# Seconds for which a process waits for the others: NCCL's default, for gloo, too, whose own is half an hour.
TIMEOUT = 600


@contextmanager
def started_processes(cfg: Config) -> Iterator[None]:
    """Join the other processes while a runner is built in this context, and compare with them.

    mmengine's own start and its default wrapper name a CUDA device. With a GPU, they do it; without one the processes
    join over gloo here, and the config gets a wrapper without a device.
    """
    if cfg.get('launcher', 'none') == 'none':
        yield
        return
    distribution = dict((cfg.get('env_cfg') or {}).get('dist_cfg') or {})
    if distribution.get('timeout') is None:
        distribution['timeout'] = TIMEOUT
    cfg.env_cfg = dict(cfg.get('env_cfg') or {}, dist_cfg=distribution)
    if cfg.launcher == 'slurm':
        _take_from_slurm()
    choose_interface()
    if cfg.launcher in ('pytorch', 'slurm') and get_device() == 'cpu':
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=distribution['timeout']))
        unused = cfg.get('find_unused_parameters', False)
        default = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
        cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or default, device_ids=None)
    if torch.distributed.is_initialized():
        meet(cfg)
        yield
    else:
        with calling_after_joining(lambda: meet(cfg)):
            yield


def choose_interface() -> None:
    """Name gloo the network interface on which the first machine is reached, if there are several machines.

    By itself gloo takes the interface that has the address of the machine's name: often 127.0.1.1, or another network.
    """
    if on_several_machines():
        address = address_here()
        interface = address and not address.startswith('127.') and interface_of(address)
        if interface:
            os.environ.setdefault('GLOO_SOCKET_IFNAME', interface)


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
    nodes = int(os.environ.get('SLURM_STEP_NUM_NODES', 1))
    os.environ.setdefault('LOCAL_WORLD_SIZE', str(int(os.environ['WORLD_SIZE']) // nodes))


def leave_processes() -> None:
    """Close the group of processes, if there is one; otherwise torch warns of leaked resources."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    forget()
