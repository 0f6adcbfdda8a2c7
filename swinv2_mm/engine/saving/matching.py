"""Matching: a checkpoint that does not fit its model is an error; mmengine only warns, and random weights remain."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY, told_windows
from swinv2_mm.checkpoints.load import plain
from swinv2_mm.engine.mmengine_internals import loaded_from
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


def misfits(loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Describe the tensors of a model that the state_dict of a checkpoint does not fill; empty if it fills all."""
    loaded = {key.removeprefix('module.'): value for key, value in loaded.items() if isinstance(value, Tensor)}
    # Older checkpoints have neither the counters of BatchNorm nor our pretrained windows.
    optional = ('num_batches_tracked', PRETRAINED_KEY)
    wanted = {key: tensor for key, tensor in wanted.items() if not key.endswith(optional)}
    missing = [key for key in wanted if key not in loaded]
    reshaped = [key for key in wanted if key in loaded and loaded[key].shape != wanted[key].shape]
    faults = []
    if missing:
        faults.append(f'{len(missing)} of the {len(wanted)} tensors of the model are not in it, such as {missing[0]}')
    if reshaped:
        there, here = (tuple(tensors[reshaped[0]].shape) for tensors in (loaded, wanted))
        faults.append(
            f'{len(reshaped)} are of another shape, such as {reshaped[0]}, {there} in it, {here} in the model'
        )
    return '; '.join(faults)


def match_windows(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Raise a UserError if the pretrained windows of a checkpoint are not those of the model's config."""
    state = checkpoint.get('state_dict', checkpoint)
    before = 'module.' if any(str(key).startswith('module.') for key in state) else ''
    backbones: dict[str, Any] = {name: m for name, m in model.named_modules() if hasattr(m, 'windows_given')}
    for name, module in backbones.items():
        prefix = f'{name}.' if name else ''
        key = f'{before}{prefix}{PRETRAINED_KEY}'
        own = module.pretrained_window_sizes
        told = told_windows(key, state[key]) if key in state else None
        if told is not None and module.windows_given and own != told[: len(own)]:
            raise UserError(
                f'{path} was trained with pretrained_window_sizes={plain(told)}; this config has {plain(own)}. Leave '
                f'it out, since the weights know it, or pass --cfg-options '
                f'"model.{prefix}pretrained_window_sizes={plain(told)}".'
            )


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuse to test or resume with a checkpoint that does not fill every parameter and buffer of the model, or that
    was trained with other pretrained windows than the config's."""

    # Before EMAHook and others that read the checkpoint.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model: Any = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        faults = misfits(checkpoint.get('state_dict', checkpoint), model.state_dict())
        if faults:
            raise UserError(
                f'{loaded_from(runner)} does not fit this config: {faults}. It belongs to another, or is a backbone.'
            )
        match_windows(model, checkpoint, loaded_from(runner))
