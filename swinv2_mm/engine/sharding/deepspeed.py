"""DeepSpeed: ZeRO stages 1 to 3 and offload to main memory, through mmengine's strategy for it."""

import copy
import json
from pathlib import Path

import torch
from mmengine._strategy import BaseStrategy
from mmengine._strategy import DeepSpeedStrategy as MMEngineDeepSpeedStrategy
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import BaseOptimWrapper
from mmengine.runner import FlexibleRunner, load_checkpoint
from torch import nn
from torch.serialization import safe_globals

from swinv2_mm.engine.checks.weights import open_checkpoint as check_checkpoint
from swinv2_mm.engine.recipe.precision import best_dtype, tell_precision
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.errors import UserError
from swinv2_mm.registry import RUNNERS, STRATEGIES

WEIGHTS = 'weights.pth'  # an ordinary checkpoint without optimizer, in the folder that DeepSpeed saves


@RUNNERS.register_module()
class DeepSpeedRunner(FlexibleRunner):
    """A runner that trains a config written for mmengine's ordinary runner with DeepSpeed.

    A checkpoint is a folder, which the same number of processes at the same stage can resume; ``weights.pth`` in it is
    an ordinary file with the whole weights.
    """

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'DeepSpeedRunner':
        """Build a runner from a config.

        Raises:
            UserError: The config asks for something that DeepSpeed, or mmengine's strategy for it, does not do.
        """
        check(cfg)
        cfg = copy.deepcopy(cfg)
        asked = cfg.optim_wrapper.get('dtype')
        cfg.optim_wrapper, settings = translate(cfg.optim_wrapper)
        cfg.strategy.config.update(settings, train_micro_batch_size_per_gpu=cfg.train_dataloader.batch_size)
        cfg.env_cfg = cfg.get('env_cfg') or {}
        if not cfg.get('resume'):
            cfg.strategy.load_from, cfg.load_from = cfg.get('load_from'), None
        runner = super().from_cfg(cfg)
        if asked is not None:
            tell_precision(asked)
        return runner

    def train(self) -> nn.Module:
        """As mmengine's; the checkpoint to resume is shown to the hooks while the model is whole.

        Raises:
            UserError: That checkpoint is divided in another way.
        """
        self.model = self.strategy.build_model(self.model)
        if self._resume:
            checkpoint = read_checkpoint(Path(self._load_from, WEIGHTS))
            saved, now = checkpoint['meta']['division'], self._division
            if saved != now:
                raise UserError(
                    f'{self._load_from} was saved by {saved["processes"]} processes at ZeRO stage {saved["stage"]}; it '
                    f'cannot be resumed by {now["processes"]} at stage {now["stage"]}. To start a new run from its '
                    f'weights, pass --cfg-options load_from={self._load_from}/{WEIGHTS} in the place of --resume.'
                )
            self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        return super().train()

    @property
    def _division(self) -> dict[str, int]:
        return {'processes': self.world_size, 'stage': self.strategy.config['zero_optimization']['stage']}

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """As mmengine's, to a local folder, with the weights in an ordinary file beside what the processes save.

        mmengine's own replaces the epoch that ``CheckpointHook`` passes by the next one.
        """
        now = {'epoch': self.epoch + by_epoch, 'iter': self.iter + (not by_epoch)}
        run = {'cfg': self.cfg.pretty_text, 'experiment_name': self.experiment_name, 'division': self._division}
        meta = now | (meta or {}) | run
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            meta['dataset_meta'] = self.train_dataloader.dataset.metainfo
        path = Path(out_dir, filename)
        for file, divided in ((path, True), (path / WEIGHTS, False)) if save_optimizer else ((path, False),):
            extra = {'meta': meta, 'message_hub': self.message_hub.state_dict()}
            self.strategy.save_checkpoint(
                str(file), save_optimizer=divided, save_param_scheduler=save_param_scheduler, extra_ckpt=extra
            )


@STRATEGIES.register_module()
class DeepSpeedStrategy(MMEngineDeepSpeedStrategy):
    """mmengine's strategy, for current versions of DeepSpeed.

    Args:
        config: DeepSpeed's own, https://www.deepspeed.ai/docs/config-json.
        load_from: A checkpoint whose weights to start from.
        **kwargs: Those of ``BaseStrategy``.
    """

    def __init__(self, *, config: dict, load_from: str | None = None, **kwargs):
        # Not super(): its constructor registers optimizers that DeepSpeed no longer has.
        BaseStrategy.__init__(self, **kwargs)
        # In plain dicts, which DeepSpeed can save and read; the log is mmengine's.
        self.config = json.loads(json.dumps({'steps_per_print': 10**12, **config}))
        self.load_from = load_from
        self.exclude_frozen_parameters = self._inputs_to_half = None

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        """As mmengine's; an ordinary checkpoint is loaded here, where the model is not yet divided."""
        model = super()._init_model_weights(model)
        if self.load_from is not None:
            load_checkpoint(model, self.load_from, map_location='cpu', revise_keys=[(r'^module\.', '')])
        return model

    def build_optim_wrapper(self, optim_wrapper: dict, model: nn.Module) -> BaseOptimWrapper:
        """As mmengine's, which forgets about ``auto_scale_lr``."""
        self.optim_wrapper = super().build_optim_wrapper(optim_wrapper, model)
        self._scale_lr()
        return self.optim_wrapper

    def resume(self, *args, **kwargs) -> dict:
        """As mmengine's, with what DeepSpeed saves beside tensors allowed: it holds numbers, and runs nothing."""
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        randomness = dict(self._randomness)
        with safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
            checkpoint = super().resume(*args, **kwargs)
        # The config holds the run's seed. What a process reads at stage 3 is its own, with the rank already added.
        self._randomness = randomness
        self._set_randomness(**randomness)
        return checkpoint


def uses_deepspeed(cfg: Config) -> bool:
    """Whether a config trains by :class:`DeepSpeedRunner`."""
    return cfg.get('runner_type') == 'swinv2_mm.DeepSpeedRunner'


def check_folder(path: str) -> dict:
    """Check that DeepSpeed can resume a checkpoint.

    Returns:
        The ordinary checkpoint in the folder, its tensors mapped.

    Raises:
        UserError: It is none of DeepSpeed's folders, or incomplete.
    """
    if Path(path).is_file():
        raise UserError(
            f'{path} cannot be resumed: DeepSpeed resumes only the folders that it saved. To start a new run from its '
            f'weights, pass --cfg-options load_from={path} in the place of --resume.'
        )
    return check_checkpoint(str(Path(path, WEIGHTS)), '--resume')


def check(cfg: Config) -> None:
    """Check that mmengine's strategy for DeepSpeed does what a config asks of the runner.

    Raises:
        UserError: It does not.
    """
    if cfg.get('launcher', 'none') == 'none':
        raise UserError('DeepSpeed needs a launcher, for one process, too: bash tools/dist_train.sh CONFIG 1')
    for key in ('sync_bn', 'compile', 'activation_checkpointing', 'efficient_conv_bn_eval'):
        if cfg.get(key):
            raise UserError(f'{key}: DeepSpeed would train without it; leave it out of the config.')
    for hook in [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]:
        kind = (hook or {}).get('type')
        if getattr(kind, '__name__', str(kind)).endswith('EMAHook'):
            raise UserError(
                'EMAHook would save nothing of what it averages under DeepSpeed. Leave it out of the hooks, or shard '
                'with configs/_base_/sharding/zero1.py or fsdp2.py.'
            )


def translate(wrapper: dict) -> tuple[dict, dict]:
    """Say in DeepSpeed's terms what a config for mmengine's ``OptimWrapper`` or ``AmpOptimWrapper`` says.

    Returns:
        The config of mmengine's ``DeepSpeedOptimWrapper``, and keys of DeepSpeed's config.

    Raises:
        UserError: There are no such terms.
    """
    wrapper = dict(wrapper)
    settings = {'gradient_accumulation_steps': wrapper.pop('accumulative_counts', 1)}
    if wrapper.get('clip_grad') is not None:
        clip = dict(wrapper['clip_grad'])
        settings['gradient_clipping'] = clip.pop('max_norm', None)
        if settings['gradient_clipping'] is None or clip not in ({}, {'norm_type': 2}):
            raise UserError(
                f'optim_wrapper.clip_grad={dict(wrapper["clip_grad"])}: DeepSpeed clips the 2-norm of all gradients; '
                'set it to dict(max_norm=1.0), or whatever the norm is.'
            )
    kind, dtype = wrapper.pop('type', None) or 'OptimWrapper', wrapper.pop('dtype', None)
    kind = getattr(kind, '__name__', kind).split('.')[-1]
    if kind == 'AmpOptimWrapper' and dtype == 'auto':
        dtype = best_dtype(get_device())
    if kind == 'AmpOptimWrapper' and dtype != torch.float32:
        if dtype not in ('bfloat16', torch.bfloat16):
            raise UserError(
                f'optim_wrapper.dtype={dtype}: with DeepSpeed, mixed precision is bfloat16; pass --cfg-options '
                'optim_wrapper.dtype=bfloat16'
            )
        # torch's autocast, as without DeepSpeed: DeepSpeed's own bf16 would round the parameters of the heads.
        settings['torch_autocast'] = {'enabled': True, 'dtype': 'bfloat16'}
    elif kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'optim_wrapper.type={kind}: DeepSpeed replaces OptimWrapper or AmpOptimWrapper; set either.')
    wrapper.pop('_scope_', None)  # mmengine's note of where it was inherited from
    unknown = wrapper.keys() - {'optimizer', 'paramwise_cfg', 'constructor', 'clip_grad', 'loss_scale'}
    if unknown:
        raise UserError(f'optim_wrapper.{min(unknown)}: DeepSpeed would train without it; leave it out of the config.')
    kept = {key: wrapper[key] for key in ('optimizer', 'paramwise_cfg', 'constructor') if key in wrapper}
    return {'type': 'DeepSpeedOptimWrapper', **kept}, settings
