"""Mixed precision: ``--amp`` and ``'auto'`` choose the data type that the device computes in fast."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn import Module

from swinv2_mm.engine.config import add_hook
from swinv2_mm.engine.mmengine_internals import box_modules, init_amp_wrapper
from swinv2_mm.errors import UserError
from swinv2_mm.models.kernels.choose import has_arithmetic
from swinv2_mm.registry import HOOKS, OPTIM_WRAPPERS

# The values of --amp, and their data types.
PRECISIONS = {'bf16': 'bfloat16', 'fp16': 'float16', 'fp32': 'float32'}
PRECISIONS |= {name: name for name in (*PRECISIONS.values(), 'auto')}
HALVES = (torch.bfloat16, torch.float16)
AUTO = (None, 'auto')  # both mean the choice of best_dtype


def computes(device: str, dtype: torch.dtype) -> bool:
    """Whether a device has arithmetic for a type; an emulated type is slower than float32."""
    if device == 'cpu':
        return has_arithmetic(dtype)
    return device != 'cuda' or dtype != torch.bfloat16 or torch.cuda.is_bf16_supported(including_emulation=False)


def best_dtype(device: str) -> torch.dtype:
    """The type to train in: bfloat16 where the device computes in it, else float32 on a CPU and float16 on a GPU."""
    if computes(device, torch.bfloat16):
        return torch.bfloat16
    return torch.float32 if device == 'cpu' else torch.float16


def tell_precision(asked: str | torch.dtype | None) -> None:
    """Log the type that ``'auto'`` chooses on this device, or warn of an emulated type."""
    device = get_device()
    name = torch.cuda.get_device_name() if device == 'cuda' else 'this processor'
    if asked in AUTO:
        chosen = best_dtype(device)
        reason = '' if chosen == torch.bfloat16 else f', since {name} has no bfloat16 arithmetic'
        print_log(f'precision: {_name(chosen)}{reason}', 'current')
    elif not computes(device, _dtype(asked)):
        remedy = 'Pass --amp fp16' if device == 'cuda' else 'Pass --amp auto or --amp fp32'
        slower = (
            'slower than float16 is'
            if device == 'cuda'
            else 'in which layers take 3 (AVX-512) to 80 times (AVX2) as long as in float32'
        )  # see docs/precision.md
        print_log(
            f'precision: {_name(asked)} as asked for, but {name} has no arithmetic for it and emulates it, {slower}. '
            f"{remedy}, or set optim_wrapper.dtype='auto'.",
            'current',
            logging.WARNING,
        )


def _dtype(dtype: str | torch.dtype | None) -> str | torch.dtype | None:
    return getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype


def _name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(MMEngineAmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for any device; mmengine's own needs an accelerator.

    Args:
        loss_scale: For float16: ``'dynamic'`` (None means the same), a fixed number, or the arguments of
            :class:`torch.amp.GradScaler`. bfloat16 has the exponent of float32, so its loss is never scaled.
        dtype: ``'bfloat16'``, ``'float16'``, or ``'auto'`` (None means the same) for the choice of :func:`best_dtype`
            on this machine, which may be float32: no mixed precision. A checkpoint can be resumed in any of them.
        **kwargs: Those of ``OptimWrapper``.

    Raises:
        ValueError: Another ``dtype`` or ``loss_scale``.
    """

    def __init__(
        self, loss_scale: str | float | dict | None = None, dtype: str | torch.dtype | None = None, **kwargs
    ) -> None:
        if dtype not in AUTO and _dtype(dtype) not in HALVES:
            raise ValueError(
                f"dtype={dtype!r}: this wrapper computes in half precision; set dtype='auto', 'bfloat16' or 'float16'."
            )
        if loss_scale not in (None, 'dynamic') and not isinstance(loss_scale, int | float | dict):
            raise ValueError(
                f"loss_scale={loss_scale!r}: set it to 'dynamic', a number, or a dict of torch's GradScaler."
            )
        device = get_device()
        chosen = best_dtype(device) if dtype in AUTO else _dtype(dtype)
        scale = float(loss_scale) if isinstance(loss_scale, int | float) else None
        settings = {'init_scale': scale} if scale is not None else loss_scale if isinstance(loss_scale, dict) else {}
        scaler = torch.amp.GradScaler(device, **(settings | {'enabled': chosen == torch.float16}))
        init_amp_wrapper(self, chosen, scaler, scale, **kwargs)
        tell_precision(dtype)

    @contextmanager
    def optim_context(self, model: Module) -> Iterator[None]:
        """As mmengine's, whose autocast knows no float16 on a CPU."""
        half = self.cast_dtype in HALVES
        with OptimWrapper.optim_context(self, model), torch.autocast(get_device(), self.cast_dtype, enabled=half):
            yield

    def state_dict(self) -> dict:
        """The optimizer's state, and the loss scale if there is one: an enabled scaler cannot load an empty state."""
        return super().state_dict() if self.loss_scaler.is_enabled() else OptimWrapper.state_dict(self)


@HOOKS.register_module()
class Float32BoxesHook(Hook):
    """Let a detector compute boxes, and the inputs of mmcv's operators, in float32 while the rest is in half precision.

    bfloat16 has 8 significant bits: around 1000 pixels only every fourth number exists. float16 has 11: steps of half a
    pixel there. Under autocast MMDetection gives its anchors and RoIs the type of the features. Besides, mmcv's
    RoIAlign and NMS do not support bfloat16, nor float16 on a CPU. The outputs of dense heads and the inputs of RoI
    extractors are cast; both are small compared with the convolutions.
    """

    def before_train(self, runner: Runner) -> None:
        keep_boxes_in_float32(runner.model)


def keep_boxes_in_float32(model: Module) -> None:
    """Cast the tensors that a detector computes boxes from, see :class:`Float32BoxesHook`."""
    dense_head, roi_extractor = box_modules()
    for module in model.modules():
        if isinstance(module, dense_head):
            module.register_forward_hook(_float32_outputs)
        elif isinstance(module, roi_extractor):
            module.register_forward_pre_hook(_float32_inputs)


def _float32_outputs(module: Module, inputs: tuple, outputs: object) -> object:
    return _float32(outputs)


def _float32_inputs(module: Module, inputs: tuple) -> tuple:
    return _float32(inputs)


def _float32(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype in HALVES else value
    return type(value)(map(_float32, value)) if isinstance(value, list | tuple) else value


def set_precision(cfg: Config, amp: str | None = None) -> None:
    """Choose the optimizer wrapper for a precision, on this machine's device.

    The config keeps ``'auto'``, which the wrapper resolves, so that a run can be resumed on another kind of processor.

    Args:
        cfg: Edited in place.
        amp: One of :data:`PRECISIONS`, where ``'float32'`` is no mixed precision, and ``'auto'`` the config's own
            type if the device computes in it, else the choice of :func:`best_dtype`. None keeps the config's choice.

    Raises:
        UserError: The wrapper or the device does not support it.
    """
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type') or 'OptimWrapper'
    kind = getattr(kind, '__name__', kind).split('.')[-1]
    if amp and kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(
            f'--amp chooses between OptimWrapper and AmpOptimWrapper; this config has a {kind}, which sets '
            'its own precision.'
        )
    device = get_device()
    amp = PRECISIONS[amp] if amp else None
    chosen = _dtype(wrapper.get('dtype')) if kind == 'AmpOptimWrapper' else None
    if amp == 'auto' and chosen not in AUTO and (chosen not in HALVES or computes(device, chosen)):
        amp = None
    if amp == 'float32':
        kind = wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale'):
            wrapper.pop(key, None)
    elif amp and amp != wrapper.get('dtype'):
        # bfloat16 has the exponent of float32: no underflow, so no loss scale.
        kind, scale = 'AmpOptimWrapper', 1.0 if amp == 'bfloat16' else 'dynamic'
        wrapper.update(type=kind, dtype=amp, loss_scale=scale)
    if kind == 'AmpOptimWrapper':
        _set_wrapper(cfg, device)


def _set_wrapper(cfg: Config, device: str) -> None:
    """Replace mmengine's wrapper where it cannot be built, does not choose a type, or would not warn."""
    wrapper = cfg.optim_wrapper
    dtype = wrapper.get('dtype')
    if cfg.get('default_scope') == 'mmdet':
        add_hook(cfg, 'swinv2_mm.Float32BoxesHook')
    if device == 'cpu' and dtype not in AUTO and _dtype(dtype) not in HALVES:
        raise UserError(
            f'optim_wrapper.dtype={dtype}: mixed precision is bfloat16 or float16; pass --amp auto, --amp '
            'bf16, --amp fp16, or --amp fp32 for none.'
        )
    emulated = device == 'cuda' and dtype is not None and not computes(device, _dtype(dtype))
    if emulated and not torch.cuda.is_bf16_supported():
        raise UserError(f'{torch.cuda.get_device_name()} does not compute in bfloat16; pass --amp fp16.')
    if device == 'cpu' or dtype == 'auto' or emulated:
        wrapper.type = 'swinv2_mm.AmpOptimWrapper'
