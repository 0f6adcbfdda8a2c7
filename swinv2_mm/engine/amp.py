"""Mixed precision: bfloat16, on accelerators through mmengine's wrapper, on CPUs through a subclass of it."""

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn import Module

from swinv2_mm.engine.config import add_hook
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS, OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(MMEngineAmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for bfloat16 alone; unlike it, this one can be built without an accelerator.

    bfloat16 has the exponent of float32, so no loss is scaled.

    Args:
        loss_scale: Taken, so that a config serves both wrappers; without effect.
        dtype: ``'bfloat16'`` or None, which means the same.
        **kwargs: Those of ``OptimWrapper``.

    Raises:
        ValueError: Another ``dtype``.
    """

    def __init__(self, loss_scale: object = None, dtype: str | torch.dtype | None = None, **kwargs):
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(f"dtype={dtype!r}: this wrapper computes in bfloat16; set dtype='bfloat16'")
        # Not super(): its constructor is what asks for an accelerator.
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = torch.bfloat16
        self.loss_scaler = torch.amp.GradScaler('cpu', enabled=False)
        self._scale_update_param = None

    def state_dict(self) -> dict:
        # Without the empty state of the scaler, which a scaler that is enabled refuses to load.
        return OptimWrapper.state_dict(self)


@HOOKS.register_module()
class Float32BoxesHook(Hook):
    """Let a detector compute boxes, and what mmcv's operators read, in float32 while the rest runs in bfloat16.

    bfloat16 has 8 significant bits: around 1000 pixels it knows every fourth, and under autocast MMDetection gives its
    anchors and RoIs the type of the features. Nor do mmcv's RoIAlign and NMS know the type. The outputs of dense heads
    and the inputs of RoI extractors are cast; both are small beside the convolutions.
    """

    def before_train(self, runner: Runner) -> None:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

        for module in runner.model.modules():
            if isinstance(module, BaseDenseHead):
                module.register_forward_hook(_float32_outputs)
            elif isinstance(module, BaseRoIExtractor):
                module.register_forward_pre_hook(_float32_inputs)


def _float32_outputs(module: Module, inputs: tuple, outputs: object) -> object:
    return _float32(outputs)


def _float32_inputs(module: Module, inputs: tuple) -> tuple:
    return _float32(inputs)


def _float32(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    return type(value)(map(_float32, value)) if isinstance(value, list | tuple) else value


def set_precision(cfg: Config, amp: bool = False) -> None:
    """Choose the optimizer wrapper that computes in the precision asked for, on the device at hand.

    Args:
        cfg: Edited in place.
        amp: Turn ``OptimWrapper`` into ``AmpOptimWrapper`` with bfloat16; one that the config chose itself stays.

    Raises:
        UserError: The wrapper knows no mixed precision, or the device not the data type.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type') or 'OptimWrapper'
    kind = getattr(kind, '__name__', kind).split('.')[-1]
    if amp and kind == 'OptimWrapper':
        kind = wrapper.type = 'AmpOptimWrapper'
    elif amp and kind != 'AmpOptimWrapper':
        raise UserError(f'--amp turns OptimWrapper into AmpOptimWrapper; this config has a {kind}, which sets its own '
                        'precision.')  # fmt: skip
    if amp and wrapper.get('dtype') is None:
        # bfloat16 reaches as far as float32: there is no underflow to scale away.
        wrapper.dtype, wrapper.loss_scale = 'bfloat16', 1.0
    if kind != 'AmpOptimWrapper':
        return
    device, dtype = get_device(), wrapper.get('dtype')
    bfloat16 = dtype in ('bfloat16', torch.bfloat16)
    if cfg.get('default_scope') == 'mmdet' and (bfloat16 or device == 'cpu'):
        add_hook(cfg, 'swinv2_mm.Float32BoxesHook')
    if device == 'cpu':
        if dtype is not None and not bfloat16:
            raise UserError(f'optim_wrapper.dtype={dtype}: on a CPU, mixed precision is bfloat16; pass --cfg-options '
                            'optim_wrapper.dtype=bfloat16.')  # fmt: skip
        wrapper.type = 'swinv2_mm.AmpOptimWrapper'
    elif device == 'cuda' and bfloat16 and not torch.cuda.is_bf16_supported():
        raise UserError(f'{torch.cuda.get_device_name()} does not compute in bfloat16; pass --cfg-options '
                        'optim_wrapper.dtype=float16 optim_wrapper.loss_scale=dynamic along with --amp.')  # fmt: skip
