"""Joining and leaving the group of processes of a distributed run, with or without a GPU."""

from datetime import timedelta

import torch
from mmengine.config import Config
from mmengine.device import get_device


def start_processes(cfg: Config) -> None:
    """Join the other processes over gloo on a machine without a GPU, and give the config a wrapper without a device.

    mmengine's own start and its default wrapper name a CUDA device; with a GPU, they do it.
    """
    if cfg.get('launcher', 'none') != 'pytorch' or get_device() != 'cpu':
        return
    if not torch.distributed.is_initialized():
        timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout) if timeout else None)
    unused = cfg.get('find_unused_parameters', False)
    default = dict(type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=unused)
    cfg.model_wrapper_cfg = dict(cfg.get('model_wrapper_cfg') or default, device_ids=None)


def leave_processes() -> None:
    """Close the group of processes, if there is one; otherwise torch warns of leaked resources."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
