"""Processes join over gloo on a machine without a GPU, and over the network in which the first machine is."""

import os
from types import SimpleNamespace

import mmengine.runner.runner
import pytest
import torch
from mmengine.config import Config

from swinv2_mm.engine.config.distributed import address_here, interface_of, on_several_machines
from swinv2_mm.engine.runs import processes
from swinv2_mm.engine.runs.processes import choose_interface, started_processes

# It gives the environment back, which is changed here without monkeypatch: that would bring back what the code has set.
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


SRUN = {
    'SLURM_JOB_ID': '31',
    'SLURM_STEP_ID': '2',
    'SLURM_PROCID': '3',
    'SLURM_LOCALID': '1',
    'SLURM_NTASKS': '4',
    'SLURM_STEP_NODELIST': 'node[1-2]',
    'SLURM_STEP_NUM_NODES': '2',
}


@pytest.fixture
def srun(monkeypatch):
    """Be a process that srun has started; scontrol writes out the list of nodes."""
    for name, value in SRUN.items():
        os.environ[name] = value
    for name in ('MASTER_ADDR', 'MASTER_PORT', 'LOCAL_WORLD_SIZE'):
        os.environ.pop(name, None)
    written = SimpleNamespace(stdout='node1\nnode2\n')
    monkeypatch.setattr(processes.subprocess, 'run', lambda command, **_: command[-1] == 'node[1-2]' and written)


def test_processes_of_slurm_join_without_gpus(srun, joined, monkeypatch):
    """Bug: mmengine sets a CUDA device for each process of Slurm; gloo takes another network than that of the nodes."""
    monkeypatch.setattr(processes, 'get_device', lambda: 'cpu')
    cfg = Config({'launcher': 'slurm'})
    with started_processes(cfg):
        pass
    assert joined[0][0] == ('gloo',) and cfg.model_wrapper_cfg.device_ids is None
    told = {'RANK': '3', 'LOCAL_RANK': '1', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'node1'}
    assert {name: os.environ[name] for name in told} == told
    assert os.environ['LOCAL_WORLD_SIZE'] == '2' and on_several_machines()


def test_jobs_and_steps_of_slurm_have_ports_of_their_own(srun, joined, monkeypatch):
    """Bug: two jobs that share a node, or two steps of a job, meet at port 29500."""
    monkeypatch.setattr(processes, 'get_device', lambda: 'cuda')
    ports = set()
    for job, step in (('31', '2'), ('31', '3'), ('32', '2')):
        os.environ['SLURM_JOB_ID'] = job
        os.environ['SLURM_STEP_ID'] = step
        os.environ.pop('MASTER_PORT', None)
        with started_processes(Config({'launcher': 'slurm'})):
            ports.add(os.environ['MASTER_PORT'])
    assert len(ports) == 3 and joined == []
    os.environ['MASTER_PORT'] = '7'
    with started_processes(Config({'launcher': 'slurm'})):
        assert os.environ['MASTER_PORT'] == '7'


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
    os.environ.pop('GLOO_SOCKET_IFNAME', None)
    os.environ['WORLD_SIZE'] = '4'
    os.environ['LOCAL_WORLD_SIZE'] = str(here)
    monkeypatch.setattr(processes, 'address_here', lambda: address)
    monkeypatch.setattr(processes, 'interface_of', {'10.9.8.7': 'net7', '127.0.0.1': 'lo'}.get)
    choose_interface()
    assert os.environ.get('GLOO_SOCKET_IFNAME') == chosen
    os.environ['GLOO_SOCKET_IFNAME'] = 'mine'
    choose_interface()
    assert os.environ['GLOO_SOCKET_IFNAME'] == 'mine'


def test_addresses_and_interfaces_are_found(monkeypatch):
    os.environ['MASTER_ADDR'] = '127.0.0.1'
    assert address_here() == '127.0.0.1' and interface_of('127.0.0.1').startswith('lo')
    assert interface_of('192.0.2.99') is None
    os.environ['MASTER_ADDR'] = 'no.such.host'
    assert address_here() is None
