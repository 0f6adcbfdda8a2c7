"""Processes join over gloo on a machine without a GPU, and over the network in which the first machine is."""

import os

import mmengine.runner.runner
import pytest
import torch
from mmengine.config import Config

from swinv2_mm.engine.config.distributed import address_here, interface_of
from swinv2_mm.engine.runs import processes
from swinv2_mm.engine.runs.processes import choose_interface, started_processes

pytestmark = pytest.mark.usefixtures('own_process')


@pytest.fixture
def joined(monkeypatch):
    """Note how the group of processes is made, and when it is compared, in place of making it."""
    calls = []
    monkeypatch.setattr(processes, 'meet', lambda cfg: calls.append('met'))
    monkeypatch.setattr(mmengine.runner.runner, 'init_dist', lambda launcher, **options: calls.append(options))
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.mark.parametrize('wrapper', [None, {'type': 'MMDistributedDataParallel', 'static_graph': True}])
def test_without_a_gpu_processes_join_over_gloo(wrapper, joined, monkeypatch):
    """Bug: ``init_dist`` sets a CUDA device, and the default wrapper names one, on a machine that has none."""
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    cfg = Config({'launcher': 'pytorch', 'find_unused_parameters': True, 'env_cfg': {'dist_cfg': {'timeout': 60}}})
    cfg.model_wrapper_cfg = wrapper
    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: len(joined) > 0)
    with started_processes(cfg):
        assert joined[1:] == ['met']
    assert joined[0][0] == ('gloo',) and joined[0][1]['timeout'].total_seconds() == 60
    assert cfg.model_wrapper_cfg.device_ids is None and cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel'
    assert cfg.model_wrapper_cfg.get('find_unused_parameters') is (True if wrapper is None else None)


def test_with_a_gpu_mmengine_starts_the_processes(joined, monkeypatch):
    """They are compared before anything else is sent. Bug: some wait for a seed while others do not ask for one."""
    monkeypatch.setattr(processes, 'get_device', lambda: 'cuda')
    cfg = Config({'launcher': 'pytorch', 'env_cfg': {'dist_cfg': {'backend': 'nccl'}}})
    with started_processes(cfg):
        assert joined == []
        mmengine.runner.runner.init_dist('pytorch', **cfg.env_cfg.dist_cfg)
    assert joined == [{'backend': 'nccl', 'timeout': 600}, 'met'] and 'model_wrapper_cfg' not in cfg


def test_alone_nothing_is_started(joined):
    cfg = Config({'launcher': 'none'})
    with started_processes(cfg):
        pass
    assert joined == [] and cfg.to_dict() == {'launcher': 'none'}


@pytest.mark.parametrize(
    ('here', 'address', 'chosen'), [(2, '10.9.8.7', 'net7'), (4, '10.9.8.7', None), (2, '127.0.0.1', None)]
)
def test_gloo_takes_the_network_of_the_first_machine(here, address, chosen, monkeypatch):
    """Of several machines only, and not the loopback. Bug: gloo takes 127.0.1.1, a machine's name for itself."""
    monkeypatch.delenv('GLOO_SOCKET_IFNAME', raising=False)
    monkeypatch.setenv('WORLD_SIZE', '4')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(here))
    monkeypatch.setattr(processes, 'address_here', lambda: address)
    monkeypatch.setattr(processes, 'interface_of', {'10.9.8.7': 'net7', '127.0.0.1': 'lo'}.get)
    choose_interface()
    assert os.environ.get('GLOO_SOCKET_IFNAME') == chosen
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'mine')
    choose_interface()
    assert os.environ['GLOO_SOCKET_IFNAME'] == 'mine'


def test_addresses_and_interfaces_are_found(monkeypatch):
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    assert address_here() == '127.0.0.1' and interface_of('127.0.0.1').startswith('lo')
    assert interface_of('192.0.2.99') is None
    monkeypatch.setenv('MASTER_ADDR', 'no.such.host')
    assert address_here() is None
