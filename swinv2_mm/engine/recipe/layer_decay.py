"""Layer-wise decay of the learning rate: the further a block is from the heads, the smaller its rate."""

import logging

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import Tensor, nn

from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2
from swinv2_mm.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, with a learning rate that decays from the heads down to the patch embedding.

    The layers are those of ``SwinTransformerV2.get_layer_depth``; their number ``n + 1``, with ``n`` blocks in the
    backbone, is read off the model. A parameter of layer ``k`` gets ``lr * decay_rate ** (n + 1 - k)``, times its
    ``lr_mult`` if ``paramwise_cfg`` has one for it. All other modules are in layer ``n + 1``, with the full
    rate. This is the convention of BEiT (arXiv 2106.08254) and of Microsoft's fine-tuning code (``get_swin_layer`` in
    its optimizer.py).

    Parameters with less than two dimensions (norms and biases, ``q_bias`` and ``v_bias`` included), ``cpb_mlp`` and
    ``logit_scale`` get no weight decay, whatever ``paramwise_cfg`` says; all others get the optimizer's, times their
    ``decay_mult``. Parameters with the same settings share a group, named ``layer_3_decay`` or ``layer_3_no_decay``;
    the heads' come first, since mmengine logs the learning rate of the first group.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper; its ``optimizer`` has an ``lr``.
        paramwise_cfg: That of mmengine's constructor, and ``decay_rate``, a number in (0, 1].

    Raises:
        UserError: There is no such ``decay_rate``, no ``lr``, or no SwinV2 backbone in the model.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        _check_settings(self.paramwise_cfg)
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
        names = {parameter: name for name, parameter in model.named_parameters()}
        layers, last = _layers(model)
        seen: set[Tensor] = set()
        groups: list[tuple[int, dict, list[Tensor]]] = []
        for single in singles:
            (parameter,) = single['params']
            if parameter in seen:  # torch would update it twice
                raise UserError(
                    f'{names[parameter]} belongs to several modules of the model; set '
                    'optim_wrapper.paramwise_cfg.bypass_duplicate=True to train it as that.'
                )
            seen.add(parameter)
            layer, above = layers.get(parameter, (last, 0))
            settings = {key: value for key, value in single.items() if key not in ('params', 'lr_mult', 'decay_mult')}
            settings['lr'] = settings.get('lr', self.base_lr) * self.paramwise_cfg['decay_rate'] ** above
            if parameter.ndim < 2 or 'cpb_mlp' in names[parameter] or 'logit_scale' in names[parameter]:
                settings['weight_decay'] = 0.0
            elif self.base_wd is not None:
                settings.setdefault('weight_decay', self.base_wd)
            settings['group_name'] = f'layer_{layer}_{"no_decay" if settings.get("weight_decay") == 0 else "decay"}'
            for _, known, members in groups:
                if known == settings:
                    members.append(parameter)
                    break
            else:
                groups.append((layer, settings, [parameter]))
        groups.sort(key=lambda group: (-group[0], -group[1]['lr'], group[1]['group_name']))
        for _, settings, members in groups:
            told = ', '.join(f'{key}={value}' for key, value in settings.items() if key != 'group_name')
            MMLogger.get_current_instance().info(f'{settings["group_name"]}: {len(members)} parameters, {told}')
        return [dict(settings, params=members) for _, settings, members in groups]


def check_layer_decay(cfg: Config) -> None:
    """Check the settings of layer-wise decay in a config, before a model is built.

    Raises:
        UserError: ``decay_rate`` is wrong, or has no effect.
    """
    wrapper = cfg.optim_wrapper
    kind, settings = wrapper.get('constructor'), wrapper.get('paramwise_cfg') or {}
    kind = getattr(kind, '__name__', kind or 'DefaultOptimWrapperConstructor').split('.')[-1]
    if kind == 'LayerDecayOptimWrapperConstructor':
        _check_settings(settings)
    elif kind == 'DefaultOptimWrapperConstructor' and 'decay_rate' in settings:
        raise UserError(
            'optim_wrapper.paramwise_cfg.decay_rate has no effect by itself; set '
            "optim_wrapper.constructor='swinv2_mm.LayerDecayOptimWrapperConstructor'."
        )


def _check_settings(paramwise_cfg: dict) -> None:
    rate = paramwise_cfg.get('decay_rate')
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
        raise UserError(
            f'optim_wrapper.paramwise_cfg.decay_rate={rate!r} must be a number above 0, at most 1: the '
            'factor from each layer to the one below it, 0.95 in the paper.'
        )
    for key in ('num_layers', 'decay_type'):
        if key in paramwise_cfg:
            raise UserError(
                f'optim_wrapper.paramwise_cfg.{key}: leave it out. The rate decays by block, and the '
                'number of blocks is read off the model.'
            )


def _layers(model: nn.Module) -> tuple[dict[Tensor, tuple[int, int]], int]:
    """For each parameter of a SwinV2 backbone its layer and the number of layers above it; and the heads' layer."""
    found, last = {}, 0
    for module in model.modules():
        if isinstance(module, SwinTransformerV2):
            for name, parameter in module.named_parameters():
                layer, count = module.get_layer_depth(name)
                found[parameter] = layer, count - 1 - layer
                last = max(last, count - 1)
    if not found:
        raise UserError(
            'LayerDecayOptimWrapperConstructor: the model has no swinv2_mm.SwinTransformerV2; leave '
            'optim_wrapper.constructor out of the config, or take its backbone.'
        )
    return found, last
