"""Edits of a config by defaults of ours."""

from importlib import import_module

import pytest
from mmengine.config import Config

complete = import_module('swinv2_mm.engine.runs.complete')  # a function of that name hides it

ADAMW = {'type': 'AdamW', 'lr': 1e-3}


@pytest.mark.parametrize(
    ('device', 'fuses', 'optimizer', 'parts', 'fused'),
    [
        ('cpu', True, ADAMW, {}, True),
        ('cpu', True, ADAMW | {'fused': False}, {}, False),
        ('cpu', True, ADAMW | {'foreach': True}, {}, None),
        ('cpu', True, {'type': 'SGD'}, {}, None),
        ('cpu', True, ADAMW, {'runner_type': 'swinv2_mm.FSDP2Runner'}, None),
        ('cpu', False, ADAMW | {'fused': True}, {}, None),
        ('cuda', True, ADAMW, {}, None),
    ],
)
def test_adamw_is_fused_on_a_cpu_that_can(monkeypatch, device, fuses, optimizer, parts, fused):
    """Bug: a tenth of each iteration is lost; or an older torch, foreach or sharded weights end in an error."""
    monkeypatch.setattr(complete, 'get_device', lambda: device)
    monkeypatch.setattr(complete, 'FUSED_ON_CPUS', fuses)
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(optimizer)), **parts))
    complete.fuse_optimizer(cfg)
    assert cfg.optim_wrapper.optimizer.get('fused') is fused
