"""Processes join over gloo on a machine without a GPU."""

import pytest
import torch
from mmengine.config import Config

from swinv2_mm.engine.runs import processes
from swinv2_mm.engine.runs.processes import start_processes

pytestmark = pytest.mark.usefixtures('own_process')


@pytest.fixture
def joined(monkeypatch):
    """Note how the group of processes is made in place of making it."""
    calls = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.mark.parametrize('wrapper', [None, {'type': 'MMDistributedDataParallel', 'static_graph': True}])
def test_without_a_gpu_processes_join_over_gloo(wrapper, joined, monkeypatch):
    """Bug: ``init_dist`` sets a CUDA device, and the default wrapper names one, on a machine that has none."""
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    cfg = Config({'launcher': 'pytorch', 'find_unused_parameters': True, 'env_cfg': {'dist_cfg': {'timeout': 60}}})
    cfg.model_wrapper_cfg = wrapper
    start_processes(cfg)
    assert joined[0][0] == ('gloo',) and joined[0][1]['timeout'].total_seconds() == 60
    assert cfg.model_wrapper_cfg.device_ids is None and cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel'
    assert cfg.model_wrapper_cfg.get('find_unused_parameters') is (True if wrapper is None else None)


@pytest.mark.parametrize(('device', 'launcher'), [('cuda', 'pytorch'), ('cpu', 'none')])
def test_with_a_gpu_or_alone_mmengine_starts_the_processes(device, launcher, joined, monkeypatch):
    monkeypatch.setattr(processes, 'get_device', lambda: device)
    cfg = Config({'launcher': launcher})
    start_processes(cfg)
    assert joined == [] and 'model_wrapper_cfg' not in cfg
