"""Start-up without a GPU, and what is checked of the launcher."""

import pytest
import torch
from mmengine.config import Config

from swinv2_mm.engine.config import distributed
from swinv2_mm.engine.config.distributed import check_launcher, start_processes
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
LAUNCHED = {'RANK': '3', 'LOCAL_RANK': '3', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'}


@pytest.fixture
def launched(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def joined(monkeypatch):
    """Note how the group of processes is made in place of making it."""
    calls = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda *args, **kwargs: calls.append((args, kwargs)))
    return calls


@pytest.mark.parametrize('left_out', LAUNCHED)
def test_names_what_the_launcher_did_not_set(left_out, launched, monkeypatch):
    """Bug: KeyError: 'RANK' from the depths of mmengine, for ``python tools/train.py … --launcher pytorch``."""
    monkeypatch.delenv(left_out)
    with pytest.raises(UserError, match=rf'{left_out}.*dist_train\.sh'):
        check_launcher('pytorch')
    check_launcher('none')


def test_more_processes_than_gpus(launched, monkeypatch):
    """Bug: CUDA error: invalid device ordinal."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    with pytest.raises(UserError, match='has 2 GPUs'):
        check_launcher('pytorch')


@pytest.mark.parametrize('wrapper', [None, {'type': 'MMDistributedDataParallel', 'static_graph': True}])
def test_gloo_without_a_gpu(wrapper, joined, monkeypatch):
    """Bug: ``init_dist`` sets a CUDA device, and the default wrapper names one, on a machine that has none."""
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cpu')
    cfg = Config({'launcher': 'pytorch', 'find_unused_parameters': True, 'env_cfg': {'dist_cfg': {'timeout': 60}}})
    cfg.model_wrapper_cfg = wrapper
    start_processes(cfg)
    assert joined[0][0] == ('gloo',) and joined[0][1]['timeout'].total_seconds() == 60
    assert cfg.model_wrapper_cfg.device_ids is None and cfg.model_wrapper_cfg.type == 'MMDistributedDataParallel'
    assert cfg.model_wrapper_cfg.get('find_unused_parameters') is (True if wrapper is None else None)


@pytest.mark.parametrize(('device', 'launcher'), [('cuda', 'pytorch'), ('cpu', 'none')])
def test_everything_else_is_left_to_mmengine(device, launcher, joined, monkeypatch):
    monkeypatch.setattr(distributed, 'get_device', lambda: device)
    cfg = Config({'launcher': launcher})
    start_processes(cfg)
    assert joined == [] and 'model_wrapper_cfg' not in cfg
