"""Mixed precision, and TF32: ``--amp`` and ``'auto'`` choose the data type that the device computes in fast."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper as MMEngineAmpOptimWrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn import Module

from swinv2_mm.compat import gpu_computes_bfloat16, grad_scaler, multiplies_in_tf32
from swinv2_mm.engine.mmengine_internals import box_modules, init_amp_wrapper
from swinv2_mm.engine.recipe.operators import HALVES, to_float32, widen_operators
from swinv2_mm.errors import UserError
from swinv2_mm.models.kernels.choose import has_arithmetic
from swinv2_mm.registry import HOOKS, OPTIM_WRAPPERS

# The values of --amp, and their data types.
PRECISIONS = {'bf16': 'bfloat16', 'fp16': 'float16', 'fp32': 'float32'}
PRECISIONS |= {name: name for name in (*PRECISIONS.values(), 'auto')}


def computes(device: str, dtype: torch.dtype) -> bool:
    """Whether a device has arithmetic for a type; an emulated type is slower than float32."""
    if device == 'cpu':
        return has_arithmetic(dtype)
    return device != 'cuda' or dtype != torch.bfloat16 or gpu_computes_bfloat16()


def best_dtype(device: str) -> torch.dtype:
    """The type to train in: bfloat16 where the device computes in it, else float32 on a CPU and float16 on a GPU."""
    if computes(device, torch.bfloat16):
        return torch.bfloat16
    return torch.float32 if device == 'cpu' else torch.float16


def half_type(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the type of a name, None for ``'auto'``; raise a ValueError if it is no half precision."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype not in (None, 'auto') and found not in HALVES:
        raise ValueError(f"dtype={dtype!r} is no half precision; set it to 'auto', 'bfloat16' or 'float16'.")
    return found


def tell_precision(asked: torch.dtype | None) -> None:
    """Log the type that is chosen on this device if None is asked for, or warn of an emulated type."""
    device = get_device()
    name = torch.cuda.get_device_name() if device == 'cuda' else 'this processor'
    chosen = asked or best_dtype(device)
    line = f'precision: {str(chosen).removeprefix("torch.")}'
    if asked is None:
        reason = '' if chosen == torch.bfloat16 else f', since {name} has no bfloat16 arithmetic'
        print_log(line + reason, 'current')
    elif not computes(device, asked):
        line += f' as asked for, but {name} only emulates it, which is slow (see docs/precision.md). Pass --amp auto, '
        print_log(line + "or set optim_wrapper.dtype='auto'.", 'current', logging.WARNING)


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(MMEngineAmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` for any device; mmengine's own needs an accelerator.

    Args:
        loss_scale: For float16: ``'dynamic'`` or None, a fixed number, or the arguments of
            :class:`torch.amp.GradScaler`. bfloat16 has the exponent of float32, so its loss is never scaled.
        dtype: ``'bfloat16'``, ``'float16'``, or ``'auto'`` or None for the choice of :func:`best_dtype`, which may be
            float32: no mixed precision. A checkpoint can be resumed in any of them.
        **kwargs: Those of ``OptimWrapper``.

    Raises:
        ValueError: Another ``dtype`` or ``loss_scale``.
    """

    def __init__(
        self, loss_scale: str | float | dict | None = None, dtype: str | torch.dtype | None = None, **kwargs
    ) -> None:
        asked, device = half_type(dtype), get_device()
        settings: dict[str, Any] = {}
        fixed = None
        if isinstance(loss_scale, dict):
            settings = loss_scale
        elif isinstance(loss_scale, int | float):
            fixed = float(loss_scale)
            settings = {'init_scale': fixed}
        elif loss_scale not in (None, 'dynamic'):
            raise ValueError(f"loss_scale={loss_scale!r}: set it to 'dynamic', a number, or a dict for GradScaler.")
        chosen = asked or best_dtype(device)
        scaler = grad_scaler(device, **{**settings, 'enabled': chosen == torch.float16})
        init_amp_wrapper(self, chosen, scaler, fixed, **kwargs)
        self.prepared = False
        tell_precision(asked)

    @contextmanager
    def optim_context(self, model: Module) -> Iterator[None]:
        """As mmengine's, whose autocast knows no float16 on a CPU; boxes stay in float32, and mmcv's operators
        take any type."""
        half = self.cast_dtype in HALVES
        if half and not self.prepared:
            self.prepared = True
            keep_boxes_in_float32(model)
            widen_operators()
        with OptimWrapper.optim_context(self, model), torch.autocast(get_device(), self.cast_dtype, enabled=half):
            yield

    def state_dict(self) -> dict:
        """The optimizer's state, and the loss scale if there is one: an enabled scaler cannot load an empty state."""
        return super().state_dict() if self.loss_scaler.is_enabled() else OptimWrapper.state_dict(self)


@HOOKS.register_module()
class Float32BoxesHook(Hook):
    """Let a detector compute boxes, and the inputs of mmcv's operators, in float32 while the rest is in half precision.

    Around 1000 pixels bfloat16 has every fourth number, float16 steps of half a pixel, and MMDetection gives its
    anchors and RoIs the type of the features. mmcv has no operator for bfloat16, nor for float16 on a CPU.

    :class:`AmpOptimWrapper` does the same by itself: the hook is for mmengine's own wrapper.
    """

    def before_train(self, runner: Runner) -> None:
        keep_boxes_in_float32(runner.model)
        widen_operators()


def keep_boxes_in_float32(model: Module) -> None:
    """Cast what dense heads return and RoI extractors take, see :class:`Float32BoxesHook`; twice is as once."""
    if 'mmdet.models' not in sys.modules:
        return
    dense_head, roi_extractor = box_modules()
    for module in model.modules():
        if isinstance(module, dense_head):
            module.register_forward_hook(lambda module, inputs, outputs: to_float32(outputs))
        elif isinstance(module, roi_extractor):
            module.register_forward_pre_hook(lambda module, inputs: to_float32(inputs))


def set_precision(cfg: Config, amp: str | None = None) -> None:
    """Set the optimizer wrapper of a config for a precision; raise a UserError if it does not support that.

    The config keeps ``'auto'``, which the wrapper resolves, so that a run can be resumed on another kind of processor.

    Args:
        cfg: The config.
        amp: One of :data:`PRECISIONS`, where ``'float32'`` is no mixed precision, and ``'auto'`` the config's own
            type if the device computes in it, else the choice of :func:`best_dtype`. None keeps the config's choice.
    """
    wrapper, device = cfg.optim_wrapper, get_device()
    kind = wrapper.get('type') or 'OptimWrapper'
    kind = getattr(kind, '__name__', kind).split('.')[-1]
    if amp and kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp: this config has a {kind}, which sets its own precision; leave --amp out.')
    asked = PRECISIONS[amp] if amp else None
    if asked == 'float32':
        wrapper.type = 'OptimWrapper'
        for key in ('dtype', 'loss_scale'):
            wrapper.pop(key, None)
        return
    if kind != 'AmpOptimWrapper' and not asked:
        return
    try:
        own = half_type(wrapper.get('dtype')) if asked in (None, 'auto') else None
    except ValueError as error:
        raise UserError(f'optim_wrapper.{error} Or pass --amp fp32 for none.') from error
    if asked and asked != wrapper.get('dtype') and not (own and computes(device, own)):
        # bfloat16 has the exponent of float32: no underflow, so no loss scale.
        scale = 1.0 if asked == 'bfloat16' else 'dynamic'
        wrapper.update(type='AmpOptimWrapper', dtype=asked, loss_scale=scale)
    # mmengine's wrapper cannot be built on a CPU, does not choose a type, does not warn of an emulated one, and leaves
    # boxes and mmcv's operators in a type that is too narrow for them.
    wrapper.type = 'swinv2_mm.AmpOptimWrapper'


def set_tf32(cfg: Config, trains: bool) -> None:
    """Switch TF32 on if ``env_cfg.tf32`` of a config asks for it; log if a GPU could use it and does not.

    Convolutions use TF32 anyway: torch allows it for cuDNN, not for matrix products.

    Args:
        cfg: The config of a run.
        trains: Whether it is a training, which ``--amp`` would speed up, too.
    """
    asked = (cfg.get('env_cfg') or {}).get('tf32', False)
    able = get_device() == 'cuda' and torch.cuda.get_device_capability() >= (8, 0)
    if asked and not able:
        print_log('tf32: no effect, since it needs a GPU of compute capability 8.0', 'current', logging.WARNING)
    elif asked:
        torch.backends.cuda.matmul.allow_tf32 = True  # after the newer fp32_precision this one could not be read
        print_log('tf32: matrix products of float32 round their factors to 11 significant bits', 'current')
    elif able and not multiplies_in_tf32() and not (trains and _trains_in_half(cfg)):
        amp = '; --amp brings more' if trains else ''
        print_log(
            f'tf32: off, so {torch.cuda.get_device_name()} multiplies matrices of float32 without its tensor cores. '
            f'--tf32, or env_cfg.tf32=True, switches it on: up to 8 times as fast{amp} (see docs/precision.md)',
            'current',
        )


def _trains_in_half(cfg: Config) -> bool:
    """Whether a training on a GPU computes its products in half precision."""
    kind = (cfg.get('optim_wrapper') or {}).get('type') or ''
    return 'Amp' in getattr(kind, '__name__', kind) or (cfg.get('fsdp2') or {}).get('block_dtype') == 'bfloat16'
