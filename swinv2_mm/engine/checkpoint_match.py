"""A checkpoint that does not fit its model is an error; mmengine only warns and leaves the rest random."""

import re
from collections.abc import Mapping

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor

from swinv2_mm.checkpoints.load import plain, windows_of_training
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


def misfits(loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Say what of a model's tensors a checkpoint does not fill; empty if it fills them all.

    Args:
        loaded: The state_dict of the checkpoint; ``module.`` in front of its keys is ignored.
        wanted: That of the model.
    """
    loaded = {re.sub(r'^module\.', '', key): tensor for key, tensor in loaded.items() if isinstance(tensor, Tensor)}
    # Counters of batches were added to PyTorch later than BatchNorm.
    wanted = {key: tensor for key, tensor in wanted.items() if not key.endswith('num_batches_tracked')}
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


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Refuse to test or resume with a checkpoint that does not fill every parameter and buffer of the model."""

    # Before EMAHook and others that use what is in the checkpoint.
    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        faults = misfits(checkpoint.get('state_dict', checkpoint), model.state_dict())
        if faults:
            raise UserError(
                f'{runner._load_from} does not fit this config: {faults}. It belongs to another config, or holds a '
                'backbone alone.'
            )
        text = (checkpoint.get('meta') or {}).get('cfg')
        for name, module in model.named_modules():
            windows = getattr(module, 'pretrained_window_sizes', None)
            _, trained = windows_of_training(text, len(windows)) if windows is not None else (None, None)
            if trained is not None and trained != tuple(windows):
                raise UserError(
                    f'{runner._load_from} was trained with pretrained_window_sizes={plain(trained)}; this config has '
                    f'{plain(windows)}. Pass --cfg-options "model.{name}.pretrained_window_sizes={plain(trained)}".'
                )
