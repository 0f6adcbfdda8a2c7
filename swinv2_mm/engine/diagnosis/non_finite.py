"""If the loss or a gradient becomes NaN, training stops before the update and names the module and the image files.

It costs next to nothing: the loss is checked in every iteration where mmengine has just read it for its log, and the
gradients by their norm, which clipping computes before every update. Without clipping by norm, the norm is computed
here. Several processes exchange one number per iteration.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.structures import BaseDataElement
from torch import nn

from swinv2_mm.compat import is_divided, total_norm
from swinv2_mm.engine.diagnosis.watching import Step
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS

_REMEDIES = (
    'Usual causes are a learning rate that is too high or rises too fast (optim_wrapper.optimizer.lr, param_scheduler),'
    ' gradients that are not clipped (optim_wrapper.clip_grad), float16 where --amp bf16 would do, and corrupt data.'
)


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stop training if the loss, or the gradient before an update, becomes NaN or infinite.

    The step is repeated once with the same batch, weights and random numbers, to find the first bad module. With a loss
    scale (float16) infinite gradients are part of the search for the scale, which skips such updates; they do not stop
    training.
    """

    # After the hook that logs the loss, before those that average or save weights.
    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        self._runner = runner
        self._model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        # Accumulated gradients may have become bad in any of their steps.
        self._steps: deque[Step] = deque(maxlen=runner.cfg.optim_wrapper.get('accumulative_counts', 1))
        self._model.data_preprocessor.register_forward_pre_hook(self._note, with_kwargs=True)
        wrapper: Any = runner.optim_wrapper
        for part in wrapper.values() if hasattr(wrapper, 'values') else [wrapper]:
            if isinstance(part.optimizer, torch.optim.Optimizer):
                part.optimizer.register_step_pre_hook(partial(self._before_update, part))

    def after_train_iter(self, runner: Runner, outputs: dict | None = None, **_: Any) -> None:
        # The model's loss, as the log has read it: reading it from the device again would wait for the device.
        bad = 'loss' in (outputs or {}) and not math.isfinite(runner.message_hub.get_scalar('train/loss').current())
        everywhere = torch.tensor(float(bad))
        all_reduce(everywhere)
        if everywhere:
            self._stop('the loss is not finite')

    def _note(self, preprocessor: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record the step that begins: preparing the batch is the first thing that it does."""
        batch, training = (*args, *kwargs.values(), False)[:2]  # `training` has a default
        if training:
            self._steps.append(Step(_place(self._runner), batch))

    def _before_update(self, wrapper: OptimWrapper, *_: Any) -> None:
        scaler = getattr(wrapper, 'loss_scaler', None)
        if not (scaler and scaler.is_enabled()) and not math.isfinite(_gradient_norm(wrapper)):
            self._stop('the gradient is not finite')

    def explain(self, error: Exception) -> None:
        """Stop as for a bad loss, if the step that raised an exception has a module whose output is not finite."""
        try:
            bad = any(step.repeat(self._model) for step in list(self._steps)[-1:])
        except Exception:  # the step's own, with another cause
            return
        if bad:
            self._stop(f'{type(error).__name__}: {error}')

    def _stop(self, what: str) -> None:
        """Search the step and report; called by every process, before the same update."""
        here = f'training has stopped at {self._steps[-1].where if self._steps else _place(self._runner)}: {what}.'
        if not self._steps:  # the model prepares batches in its own way
            raise UserError(f'{here} {_REMEDIES}')
        told = [(step.repeat(self._model), step) for step in list(self._steps)]  # repeating one notes it again
        found, step = next((pair for pair in told if pair[0]), told[-1])
        files = ', '.join(files_in(step.batch)) or 'it names no files'
        mine = found, f'{f" of process {get_rank()}" if get_world_size() > 1 else ""}, {step.where}: {files}'
        everywhere = all_gather_object(mine)
        found, batch = next((pair for pair in everywhere if pair[0]), everywhere[0])
        found = found or 'Repeated, the step was finite, so that no module can be named.'
        raise UserError(f'{here} {found} The batch{batch}. No checkpoint knows of this step. {_REMEDIES}')


@contextmanager
def blamed_on_numbers(runner: Runner) -> Iterator[None]:
    """If NaN is the cause of an exception, say so: some losses refuse NaN before there is a loss to check.

    For a single process only: of several, the others are elsewhere and could not repeat the step together.

    Raises:
        UserError: In place of the exception.
    """
    try:
        yield
    except (ValueError, AssertionError) as error:
        hook = next((hook for hook in runner.hooks if isinstance(hook, NonFiniteHook)), None)
        if hook and get_world_size() == 1:
            hook.explain(error)
        raise


def files_in(batch: Any) -> Iterator[str]:
    """The image files of a batch that its data samples name."""
    if isinstance(batch, BaseDataElement):
        if path := batch.get('img_path'):
            yield str(path)
    elif isinstance(batch, dict):
        yield from files_in(list(batch.values()))
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from files_in(item)


def _place(runner: Runner) -> str:
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        length = len(runner.train_dataloader)
        return f'epoch {runner.epoch + 1}, iteration {runner.iter % length + 1} of {length}'
    return f'iteration {runner.iter + 1} of {runner.max_iters}'


def _gradient_norm(wrapper: OptimWrapper) -> float:
    """The norm before clipping: clipping by norm has just logged it, otherwise it is computed."""
    if wrapper.clip_grad_kwargs and wrapper.clip_func is torch.nn.utils.clip_grad_norm_:
        return float(wrapper.message_hub.get_scalar(f'train/{wrapper.grad_name}').current())
    weights = (weight for group in wrapper.optimizer.param_groups for weight in group['params'])
    norm = total_norm([weight.grad for weight in weights if weight.grad is not None])
    return float(norm.full_tensor() if is_divided(norm) else norm)
