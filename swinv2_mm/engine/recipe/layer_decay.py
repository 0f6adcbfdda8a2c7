"""Layer-wise decay of the learning rate: the further a block is from the heads, the smaller its rate."""

import logging

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn

from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS

_WITHOUT_DECAY = ('cpb_mlp', 'logit_scale', 'mask_token')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with a learning rate that decays from the heads down to the patch embedding.

    A parameter of layer ``k`` (``SwinTransformerV2.get_layer_depth``) gets ``lr * decay_rate ** (n + 1 - k)``, with
    ``n`` blocks in the backbone, times its ``lr_mult``; all other modules get the full rate. This is the convention of
    BEiT (arXiv 2106.08254) and of Microsoft's fine-tuning code (``get_swin_layer`` in its optimizer.py).

    Norms, biases, ``cpb_mlp``, ``logit_scale`` and ``mask_token`` never get weight decay. Groups are named
    ``layer_3_decay`` or ``layer_3_no_decay``; the heads' come first, since mmengine logs the rate of the first group. A
    parameter that several modules share is trained once.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; its ``optimizer`` has an ``lr``.
        paramwise_cfg: That of mmengine's constructor, and ``decay_rate``, a number in (0, 1].

    Raises:
        UserError: There is no such ``decay_rate``, no ``lr``, or no SwinV2 backbone in the model.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        # By default mmengine would update a parameter that several modules share twice.
        super().__init__(optim_wrapper_cfg, {**(paramwise_cfg or {}), 'bypass_duplicate': True})
        rate = self.paramwise_cfg.get('decay_rate')
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise UserError(f'optim_wrapper.paramwise_cfg.decay_rate={rate!r} must be a number above 0, at most 1.')
        for key in ('num_layers', 'decay_type'):
            if key in self.paramwise_cfg:
                raise UserError(f'optim_wrapper.paramwise_cfg.{key}: leave it out; the model tells its blocks.')
        if self.base_lr is None:
            raise UserError('optim_wrapper.optimizer.lr is not set; it is what layer-wise decay scales.')

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: int | float | None = None
    ) -> None:
        """As mmengine's, which calls itself for each part of the model; the groups of the whole model are merged."""
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(logging.WARNING)  # mmengine would log the learning rates before the decay
        super().add_params(params, module, prefix, is_dcn_module)
        logger.setLevel(level)
        params[:] = self._by_layer(params, module)

    def _by_layer(self, singles: list[dict], model: nn.Module) -> list[dict]:
        """Merge groups of one parameter each into groups of one layer and one weight decay each."""
        layers = {
            parameter: backbone.get_layer_depth(name)
            for backbone in model.modules()
            if isinstance(backbone, SwinTransformerV2)
            for name, parameter in backbone.named_parameters()
        }
        if not layers:
            raise UserError('optim_wrapper.constructor: the model has no swinv2_mm.SwinTransformerV2; leave it out.')
        names = {parameter: name for name, parameter in model.named_parameters()}
        most = max(count for _, count in layers.values())
        groups: dict[str, tuple[int, dict, list[Tensor]]] = {}
        for single in singles:
            (parameter,) = single['params']
            layer, count = layers.get(parameter, (most - 1, most))
            settings = {key: value for key, value in single.items() if key not in ('params', 'lr_mult', 'decay_mult')}
            settings['lr'] = settings.get('lr', self.base_lr) * self.paramwise_cfg['decay_rate'] ** (count - 1 - layer)
            if parameter.ndim < 2 or any(part in names[parameter] for part in _WITHOUT_DECAY):
                settings['weight_decay'] = 0.0
            elif self.base_wd is not None:
                settings.setdefault('weight_decay', self.base_wd)
            settings['group_name'] = f'layer_{layer}_{"no_decay" if settings.get("weight_decay") == 0 else "decay"}'
            _, _, members = groups.setdefault(str(sorted(settings.items())), (layer, settings, []))
            members.append(parameter)
        ordered = sorted(groups.values(), key=lambda group: (-group[0], -group[1]['lr'], group[1]['group_name']))
        return [dict(settings, params=members) for _, settings, members in ordered]


def check_layer_decay(cfg: Config) -> None:
    """Raise a UserError if a config has a ``decay_rate`` that its constructor would ignore."""
    kind = str(cfg.optim_wrapper.get('constructor') or 'DefaultOptimWrapperConstructor').split('.')[-1]
    if kind == 'DefaultOptimWrapperConstructor' and 'decay_rate' in (cfg.optim_wrapper.get('paramwise_cfg') or {}):
        raise UserError(
            'optim_wrapper.paramwise_cfg.decay_rate has no effect by itself; set '
            "optim_wrapper.constructor='swinv2_mm.LayerDecayOptimWrapperConstructor'."
        )
