"""FSDP2 divides parameters, gradients and the optimizer's state among the processes (ZeRO stage 3)."""

from typing import Any

import torch
from mmengine.device import get_device
from mmengine.model import convert_sync_batchnorm
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from swinv2_mm.compat import VERSION, is_divided
from swinv2_mm.engine.sharding.gathering import GatheringRunner
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2Block
from swinv2_mm.registry import RUNNERS


@RUNNERS.register_module()
class FSDP2Runner(GatheringRunner):
    """A runner that trains with torch's ``fully_shard``; ``fsdp2 = dict(...)`` has the arguments of :func:`shard`.

    Each block of the backbone is a unit: its parameters are gathered while it computes, and divided otherwise. The rest
    of the model is one more unit: frameworks call their heads by ``loss`` and ``predict``, which the hooks of a unit do
    not see. Checkpoints are those of a run without sharding, for any number of processes. A single process without a
    launcher trains as always; tests run unsharded.
    """

    def setup_env(self, env_cfg: dict) -> None:
        """As mmengine's; with ``offload`` the processes communicate tensors in main memory, too, over gloo."""
        if VERSION < (2, 6):
            raise UserError(
                f'runner_type=swinv2_mm.FSDP2Runner needs torch 2.6 or newer, and this is {torch.__version__}; '
                'swinv2_mm.Zero1Runner divides the state of the optimizer with any version.'
            )
        if get_device() == 'cuda' and self.cfg.get('fsdp2', {}).get('offload'):
            env_cfg = dict(env_cfg, dist_cfg=dict(env_cfg.get('dist_cfg') or {}, backend='cpu:gloo,cuda:nccl'))
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Only move the model to its device: sharding replaces parameters, so they must have their values first."""
        if not self.distributed:
            return super().wrap_model(model_wrapper_cfg, model)
        if self.cfg.get('sync_bn'):
            model = convert_sync_batchnorm(model, self.cfg.sync_bn)
        return model.to(get_device())

    def train(self) -> nn.Module:
        """Initialise the parameters, shard them, and train."""
        super().init_weights()
        if self.distributed:
            shard(self.model, **self.cfg.get('fsdp2', {}))
        return super().train()

    def init_weights(self) -> None:
        """Done before sharding."""

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """As mmengine's, but the complete checkpoint stays in main memory."""
        super().resume(filename, *args, **{'map_location': 'cpu', **kwargs})

    def call_hook(self, fn_name: str, **kwargs) -> None:
        if fn_name == 'after_load_checkpoint':
            self._scatter(kwargs['checkpoint'])
        super().call_hook(fn_name, **kwargs)

    def _scatter(self, checkpoint: dict) -> None:
        parameters = dict(self.model.named_parameters())
        for part in (checkpoint.get('state_dict', checkpoint), checkpoint.get('ema_state_dict', {})):
            for key, value in part.items():
                part[key] = like(value, parameters.get(key.removeprefix('module.')))
        if isinstance(self.optim_wrapper, OptimWrapper) and 'optimizer' in checkpoint:
            optimized = [p for group in self.optim_wrapper.optimizer.param_groups for p in group['params']]
            for index, state in checkpoint['optimizer']['state'].items():
                for name, value in state.items():
                    state[name] = like(value, optimized[index] if index < len(optimized) else None)


def shard(model: nn.Module, block_dtype: str = 'float32', offload: bool = False) -> None:
    """Divide the parameters of a model among the processes, in place.

    Args:
        model: With the same values in each process.
        block_dtype: ``'float32'``, or ``'bfloat16'`` to gather the blocks' parameters in half the bytes and to compute
            the blocks in that type, except for the position bias. Shards, gradients and the optimizer stay in float32.
        offload: Keep shards, gradients and the optimizer's state in main memory, and update there: slower, for models
            whose shards do not fit the GPUs.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    if block_dtype not in ('float32', 'bfloat16'):
        raise UserError(f"fsdp2.block_dtype={block_dtype!r}: set it to 'float32' or 'bfloat16'.")
    if not isinstance(offload, bool):
        raise UserError(f'fsdp2.offload={offload!r}: set it to True or False.')
    device = get_device()
    options: dict[str, Any] = {'mesh': init_device_mesh(device, (torch.distributed.get_world_size(),))}
    if offload:  # only an accelerator's driver can pin memory
        options['offload_policy'] = CPUOffloadPolicy(pin_memory=device != 'cpu')
    precision = MixedPrecisionPolicy()
    if block_dtype == 'bfloat16':
        precision = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, SwinTransformerV2Block):
            fully_shard(module, mp_policy=precision, **options)
    # By default the root stays gathered after a forward without backward, and hooks would meet plain parameters.
    fully_shard(model, reshard_after_forward=True, **options)
    # fully_shard forbids copies, since they could not run; mmengine's EMAHook copies the model only for its values.
    # The class that fully_shard gave the model belongs to every sharded model of its kind, so this one gets its own.
    kind: Any = type(model)
    kind = type(kind.__name__, kind.__bases__, {'__deepcopy__': lambda module, memo: parameters_alone(module)})
    model.__class__ = kind


def parameters_alone(module: nn.Module) -> nn.Module:
    """Copy the parameters and buffers of a module, under their names, into a module that cannot run."""
    copy = nn.Module()
    for name, parameter in module.named_parameters(recurse=False):
        copy.register_parameter(name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        copy.register_buffer(name, buffer.clone(), persistent=name not in module._non_persistent_buffers_set)
    for name, child in module.named_children():
        copy.add_module(name, parameters_alone(child))
    return copy


def like(value: Any, parameter: Tensor | None) -> Any:
    """Divide a tensor like the parameter of its shape, without communication; return anything else as it is."""
    if not (is_divided(parameter) and isinstance(value, Tensor) and value.shape == parameter.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    divided = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return divided.to(parameter.device)  # main memory, with offload
