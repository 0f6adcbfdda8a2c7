"""FSDP2 passes its options on to torch, and changes the model that it shards, no other one."""

import copy

import pytest
import torch
from support.tiny_training import TinyRegressor
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard

from swinv2_mm.engine.sharding import fsdp2


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / 'store'), 1)
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def tiny():
    return TinyRegressor(
        dict(
            type='swinv2_mm.SwinTransformerV2',
            embed_dims=8,
            depths=(1, 2),
            num_heads=(1, 2),
            window_size=4,
            out_indices=(1,),
        )
    )


def test_the_sharded_model_alone_copies_its_values(alone):
    """EMAHook copies a sharded model for its values. Prevents: a copy without them, and a patch of the class, with
    which every other sharded model of the process would be copied into something that cannot run, without an error.
    """
    ours, theirs, plain = tiny(), tiny(), tiny()
    fsdp2.shard(ours)
    fully_shard(theirs)
    copied = copy.deepcopy(ours)
    assert isinstance(ours, FSDPModule) and isinstance(ours, TinyRegressor)
    assert copied.state_dict().keys() == ours.state_dict().keys()
    for name, value in ours.named_parameters():
        assert torch.equal(copied.get_parameter(name).full_tensor(), value.full_tensor())
    with pytest.raises(AssertionError, match='does not support deepcopy'):
        copy.deepcopy(theirs)
    assert type(copy.deepcopy(plain)) is TinyRegressor


@pytest.mark.parametrize(('device', 'pinned'), [('cpu', False), ('cuda', True)])
def test_offload_is_passed_on_for_every_unit(device, pinned, alone, monkeypatch):
    """Prevents: an option without effect, or pinned memory, which torch refuses where there is no accelerator.

    On a CPU the policy moves nothing, so a training alone would not notice if it were lost.
    """
    policies = []
    keep = lambda module, **options: policies.append(options.get('offload_policy'))  # noqa: E731
    monkeypatch.setattr(torch.distributed.fsdp, 'fully_shard', keep)
    monkeypatch.setattr(fsdp2, 'get_device', lambda: device)
    monkeypatch.setattr(torch.distributed.device_mesh, 'init_device_mesh', lambda *_: None)
    fsdp2.shard(tiny())
    assert policies == [None] * 4  # three blocks and the rest
    fsdp2.shard(tiny(), offload=True)
    assert policies[4:] == [CPUOffloadPolicy(pin_memory=pinned)] * 4


def test_offload_needs_a_group_for_main_memory(monkeypatch):
    """Prevents: NCCL alone, which cannot sum the norms of offloaded gradients. No GPU is needed to see the setting."""
    seen = []
    monkeypatch.setattr(fsdp2, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(fsdp2.GatheringRunner, 'setup_env', lambda self, env_cfg: seen.append(env_cfg))
    runner = object.__new__(fsdp2.FSDP2Runner)
    for offload in (False, True):
        runner.cfg = {'fsdp2': {'offload': offload}}
        runner.setup_env({'dist_cfg': {'backend': 'nccl', 'timeout': 9}})
    backends = [env_cfg['dist_cfg'] for env_cfg in seen]
    assert backends == [{'backend': 'nccl', 'timeout': 9}, {'backend': 'cpu:gloo,cuda:nccl', 'timeout': 9}]
