"""Build the optimizer and its schedules in the dry run, for a model without memory."""

import inspect
from copy import deepcopy

from mmengine import registry
from mmengine.config import Config
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from torch import nn

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import check_arguments, check_call, find_class, find_type, with_key
from swinv2_mm.engine.config.parts import each
from swinv2_mm.engine.recipe.layer_decay import check_layer_decay
from swinv2_mm.errors import UserError


def check_optimizer(cfg: Config, context: Context) -> None:
    """Build the optimizer of a training and its schedules."""
    if 'train' not in context.splits:
        return
    check_layer_decay(cfg)
    built = build_optimizer(cfg.optim_wrapper, context.model)
    schedulers = cfg.get('param_scheduler')
    if built is None or (isinstance(schedulers, dict) and 'type' not in schedulers):
        return  # several optimizers, each with a list of schedules
    for key, scheduler in each(schedulers, 'param_scheduler'):
        find_class(scheduler, key, registry.PARAM_SCHEDULERS)
        with with_key(scheduler, key):
            registry.PARAM_SCHEDULERS.build(
                {'end': 2**30} | deepcopy(dict(scheduler)), default_args={'optimizer': built, 'epoch_length': 100}
            )


def build_optimizer(wrapper: dict, model: nn.Module) -> OptimWrapper | None:
    """Build the optimizer of a config; None if the user's own constructor builds several. A mistake is a UserError."""
    constructor = wrapper.get('constructor')
    if isinstance(constructor, str):
        find_type(constructor, 'optim_wrapper.constructor', registry.OPTIM_WRAPPER_CONSTRUCTORS)
    if 'optimizer' not in wrapper:
        if constructor:
            return None
        raise UserError('optim_wrapper has no optimizer.')
    find_class(wrapper['optimizer'], 'optim_wrapper.optimizer', registry.OPTIMIZERS)
    plain = {'type': 'OptimWrapper'} | wrapper
    plain = {name: value for name, value in plain.items() if name not in ('constructor', 'paramwise_cfg')}
    kind = find_class(plain, 'optim_wrapper', registry.OPTIM_WRAPPERS)
    if isinstance(kind, type) and issubclass(kind, AmpOptimWrapper):  # which passes on what it does not know
        own = inspect.signature(kind).parameters
        plain = {name: value for name, value in plain.items() if name not in own} | {'type': 'OptimWrapper'}
    check_arguments(plain, 'optim_wrapper', registry.OPTIM_WRAPPERS)
    parts = ('optimizer', 'constructor', 'paramwise_cfg', 'clip_grad')  # not precision and accumulation
    with with_key(wrapper, 'optim_wrapper'):
        built = build_optim_wrapper(model, deepcopy({name: wrapper[name] for name in parts if name in wrapper}))
    if isinstance(built, OptimWrapper) and built.clip_grad_kwargs:
        check_call(built.clip_func, built.clip_grad_kwargs, 'optim_wrapper.clip_grad', 'parameters')
    return built
