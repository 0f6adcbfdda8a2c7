"""A process that no launcher started, or that has no GPU of its own, is refused."""

import pytest
import torch
from mmengine.config import Config

from swinv2_mm.engine.checks import launcher
from swinv2_mm.engine.checks.launcher import check_launcher
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
LAUNCHED = {'RANK': '3', 'LOCAL_RANK': '3', 'WORLD_SIZE': '4', 'MASTER_ADDR': 'localhost', 'MASTER_PORT': '1'}


@pytest.fixture
def launched(monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)


def test_a_missing_variable_of_the_launcher_is_named(launched, monkeypatch):
    """Bug: KeyError: 'RANK' from the depths of mmengine, for ``python tools/train.py … --launcher pytorch``."""
    monkeypatch.delenv('RANK')
    with pytest.raises(UserError, match=r'RANK.*dist_train\.sh'):
        check_launcher(Config({'launcher': 'pytorch'}))
    check_launcher(Config({'launcher': 'none'}))


def test_more_processes_than_gpus_are_refused(launched, monkeypatch):
    """Bug: CUDA error: invalid device ordinal."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(launcher, 'get_device', lambda: 'cuda')
    with pytest.raises(UserError, match='has 2 GPUs'):
        check_launcher(Config({'launcher': 'pytorch'}))


@pytest.mark.parametrize('timeout', ['10 minutes', 0, True])
def test_a_time_out_is_a_number_of_seconds(timeout, launched):
    """Bug: a TypeError of mmengine after all checks, or processes that do not wait at all."""
    with pytest.raises(UserError, match=r'env_cfg\.dist_cfg\.timeout=.*seconds'):
        check_launcher(Config({'launcher': 'pytorch', 'env_cfg': {'dist_cfg': {'timeout': timeout}}}))
    check_launcher(Config({'launcher': 'pytorch', 'env_cfg': {'dist_cfg': {'timeout': 90.5}}}))
