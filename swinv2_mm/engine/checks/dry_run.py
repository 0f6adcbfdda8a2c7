"""What a run is made of is built for nothing before anything is written, so that a wrong config is told by its key.

The model and the optimizer are built without memory, data sets without reading their data, and of everything that may
do something when it is built (hooks, metrics, visualizers, loops) class and arguments are looked up.
"""

import inspect
import logging
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine import registry
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import BaseTTAModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Priority, Runner, get_priority
from torch import nn
from torch.utils.data import DataLoader

from swinv2_mm.engine.checks.annotations import check_annotations
from swinv2_mm.engine.checks.blame import SEE_MORE, blamed, check_arguments, find_class
from swinv2_mm.engine.checks.meta_forward import forward_on_meta
from swinv2_mm.engine.checks.preflight import datasets_of, is_local
from swinv2_mm.engine.checks.pretrained import check_checkpoint
from swinv2_mm.engine.saving.checkpoint_hook import CheckpointHook as SafeCheckpointHook
from swinv2_mm.engine.saving.matching import match_windows, misfits
from swinv2_mm.errors import UserError
from swinv2_mm.models.swin_v2 import SwinTransformerV2

_SIDE = 128  # of the image whose empty maps are handed from the backbone to the heads


def rehearse(cfg: Config, splits: tuple[str, ...]) -> nn.Module:
    """Build what a run would build.

    Args:
        cfg: The config; it is not changed.
        splits: Those of ``'train'``, ``'val'``, ``'test'`` that the run reads.

    Returns:
        The model, to be looked at, without memory for its weights.

    Raises:
        UserError: Something cannot be built, does not fit together, or does not fit the annotations.
    """
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'), _silence():
        _look_up(cfg, splits)
        classes = {}
        for split in splits:
            for key, dataset in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
                classes[key] = _rehearse_dataset(dataset, key)
        config = cfg.model
        if cfg.get('data_preprocessor') and 'data_preprocessor' not in config:
            config = dict(config, data_preprocessor=cfg.data_preprocessor)
        _look_up_initializers(config, 'model')
        model = build_model(config)
        if 'train' in splits:
            _rehearse_optimizer(cfg, model)
        _check_classes(model, cfg.model, {key: names for key, names in classes.items() if names})
        _check_fit(model)
    return model


def check_weights(model: nn.Module, path: str, whole: bool) -> None:
    """Check the weights of a whole model against a rehearsed one.

    Args:
        model: From :func:`rehearse`.
        path: The checkpoint.
        whole: Every tensor of the model has to be in it; else one.

    Raises:
        UserError: It is another model's, or was trained with other pretrained windows.
    """
    checkpoint = check_checkpoint(path)
    if checkpoint is None:
        return
    while isinstance(model, BaseTTAModel):
        model = model.module
    wanted = model.state_dict()
    loaded = checkpoint.get('state_dict', checkpoint)
    faults = misfits(loaded, wanted)
    fits = any(
        isinstance(tensor, torch.Tensor)
        and key.removeprefix('module.') in wanted
        and wanted[key.removeprefix('module.')].shape == tensor.shape
        for key, tensor in loaded.items()
    )
    if faults and (whole or not fits):
        raise UserError(
            f'{path} does not fit this config: {faults}. It belongs to another config, or holds a backbone alone.'
        )
    match_windows(model, checkpoint, path)


def build_model(config: Any, key: str = 'model') -> nn.Module:
    """Build a model of a config without memory for its weights, which are neither fetched nor read.

    Raises:
        UserError: It cannot be built.
    """
    model = deepcopy(config)
    detector = model
    while isinstance(detector, dict) and isinstance(detector.get('module', detector.get('detector')), dict):
        detector = detector.get('module', detector.get('detector'))  # of test-time augmentation, or semi-supervised
    if isinstance(detector, dict) and isinstance(detector.get('backbone'), dict) and 'init_cfg' in detector['backbone']:
        detector['backbone']['init_cfg'] = None
    with blamed(model, key):
        try:
            with torch.device('meta'):
                return registry.MODELS.build(deepcopy(model))
        except UserError:
            raise
        except Exception:  # it may want values, which tensors without memory do not have
            return registry.MODELS.build(model)


def check_form(cfg: Config) -> None:
    """Check that the parts of a config that the runner reads are what it expects, and there together.

    Raises:
        UserError: One is a text or a number, or lacks what belongs to it.
    """
    for key in (
        'model',
        'train_cfg',
        'val_cfg',
        'test_cfg',
        'optim_wrapper',
        'auto_scale_lr',
        'default_hooks',
        'randomness',
        'env_cfg',
        'log_processor',
        'visualizer',
        'data_preprocessor',
        'strategy',
    ):
        value = cfg.get(key)
        if value is not None and not isinstance(value, dict):
            raise UserError(f'{key}={value!r} must be a dict.')
    for key in ('param_scheduler', 'val_evaluator', 'test_evaluator'):
        value = cfg.get(key)
        if value is not None and not isinstance(value, dict | list | tuple):
            raise UserError(f'{key}={value!r} must be a dict with a type, or a list of such.')
    hooks = cfg.get('custom_hooks')
    if hooks is not None and not (isinstance(hooks, list | tuple) and all(isinstance(hook, dict) for hook in hooks)):
        raise UserError(f'custom_hooks={hooks!r} must be a list of dicts, each with a type.')
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if hook is not None and not isinstance(hook, dict):
            raise UserError(f'default_hooks.{name}={hook!r} must be a dict with a type, or None.')
    if cfg.get('model') is None:
        raise UserError('the config has no model.')
    for group in (
        ('train_dataloader', 'train_cfg', 'optim_wrapper'),
        ('val_dataloader', 'val_cfg', 'val_evaluator'),
        ('test_dataloader', 'test_cfg', 'test_evaluator'),
    ):
        there = [key for key in group if cfg.get(key) is not None]
        absent = [key for key in group if key not in there]
        if there and absent:
            raise UserError(
                f'the config has {" and ".join(there)}, but no {" and no ".join(absent)}; these belong together. Set '
                f'{", ".join(there)} to None to do without.'
            )
    if cfg.get('load_from') is not None and not (isinstance(cfg.load_from, str) and cfg.load_from):
        raise UserError(f'load_from={cfg.load_from!r} must be the path of a checkpoint.')


def _look_up(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check class and arguments of what the runner builds by itself."""
    for split in splits:
        _look_up_loader(cfg.get(f'{split}_dataloader'), f'{split}_dataloader')
        loop = dict(cfg.get(f'{split}_cfg'))
        given = ['runner', 'dataloader'] if split == 'train' else ['runner', 'dataloader', 'evaluator']
        if 'type' not in loop:
            by_epoch = loop.pop('by_epoch', None) if split == 'train' else None
            if split == 'train' and not isinstance(by_epoch, bool):
                raise UserError(f'train_cfg needs by_epoch=True, or by_epoch=False, or a type; it is {loop}.')
            kind = {'train': 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop', 'val': 'ValLoop'}
            loop['type'] = kind.get(split, 'TestLoop')
        check_arguments(loop, f'{split}_cfg', registry.LOOPS, *given)
        if split != 'train':
            evaluator = cfg[f'{split}_evaluator']
            several = isinstance(evaluator, list | tuple)
            if not evaluator:
                raise UserError(f'{split}_evaluator={evaluator!r} measures nothing.')
            for index, metric in enumerate(evaluator if several else [evaluator]):
                if not isinstance(metric, dict) or 'metrics' not in metric:  # else an evaluator of the user's own
                    key = f'{split}_evaluator.{index}' if several else f'{split}_evaluator'
                    check_arguments(metric, key, registry.METRICS)
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if hook is not None:
            _look_up_hook(hook, f'default_hooks.{name}')
    for index, hook in enumerate(cfg.get('custom_hooks') or []):
        _look_up_hook(hook, f'custom_hooks.{index}')
    visualizer = cfg.get('visualizer')
    if visualizer:
        given = [] if 'name' in visualizer else ['name']
        check_arguments(visualizer, 'visualizer', registry.VISUALIZERS, *given)
        for index, backend in enumerate(visualizer.get('vis_backends') or []):
            given = [] if 'save_dir' in backend else ['save_dir']
            check_arguments(backend, f'visualizer.vis_backends.{index}', registry.VISBACKENDS, *given)
    check_arguments(
        {'type': 'LogProcessor'} | (cfg.get('log_processor') or {}), 'log_processor', registry.LOG_PROCESSORS
    )
    if cfg.get('runner_type'):
        find_class({'type': cfg.runner_type}, 'runner_type', registry.RUNNERS, 'runner_type')
    if cfg.get('randomness'):
        _check_call(Runner.set_randomness, cfg.randomness, 'randomness', 'self')


def _look_up_loader(loader: Any, key: str) -> None:
    if not isinstance(loader, dict) or not all(isinstance(loader.get(name), dict) for name in ('sampler', 'dataset')):
        raise UserError(f'{key} needs a dataset and a sampler, each a dict with a type.')
    samplers = registry.DATA_SAMPLERS
    check_arguments(loader['sampler'], f'{key}.sampler', samplers, 'dataset', 'seed')
    if loader.get('batch_sampler'):
        check_arguments(loader['batch_sampler'], f'{key}.batch_sampler', samplers, 'sampler', 'batch_size')
    for name in ('collate_fn', 'worker_init_fn'):
        if isinstance(loader.get(name), dict):
            find_class(loader[name], f'{key}.{name}', registry.FUNCTIONS)
    own = (
        'dataset',
        'sampler',
        'batch_sampler',
        'collate_fn',
        'worker_init_fn',
        'num_batch_per_epoch',
        'disable_subprocess_warning',
    )
    try:
        DataLoader([0], **{name: value for name, value in loader.items() if name not in own})
    except (TypeError, ValueError) as error:
        raise UserError(f'{key}: {error}.') from error


def _look_up_hook(hook: Any, key: str) -> None:
    plain = {name: value for name, value in hook.items() if name != 'priority'} if isinstance(hook, dict) else hook
    kind = find_class(plain, key, registry.HOOKS)
    try:
        get_priority(hook.get('priority', 'NORMAL'))
    except (KeyError, TypeError, ValueError) as error:
        names = ', '.join(Priority.__members__)
        raise UserError(f'{key}.priority={hook.priority!r} must be a number from 0 to 100, or of {names}.') from error
    check_arguments(plain, key, registry.HOOKS)
    of_mmengine = getattr(kind, '__module__', '').startswith('mmengine.hooks')
    if (of_mmengine and 'Visualization' not in kind.__name__) or kind is SafeCheckpointHook:
        with blamed(plain, key):
            built = registry.HOOKS.build(deepcopy(plain))
        if isinstance(built, CheckpointHook):  # it passes on what it does not know, after an epoch
            _check_call(Runner.save_checkpoint, built.args, key, 'self', 'out_dir', 'filename')


def _check_call(function: Any, arguments: dict, key: str, *given: str) -> None:
    try:
        inspect.signature(function).bind(**dict.fromkeys([*given, *arguments]))
    except TypeError as error:
        raise UserError(f'{key}: {function.__name__} {error}.') from error


def _look_up_initializers(node: Any, key: str) -> None:
    """Check the types of every ``init_cfg``: a model looks them up after the run has begun."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in items:
        inside = f'{key}.{name}'
        if name == 'init_cfg' and value:
            for index, init_cfg in enumerate(value if isinstance(value, list | tuple) else [value]):
                at = f'{inside}.{index}' if isinstance(value, list | tuple) else inside
                find_class(init_cfg, at, registry.WEIGHT_INITIALIZERS)
        else:
            _look_up_initializers(value, inside)


def _rehearse_dataset(config: dict, key: str) -> Sequence[str] | None:
    """Build a data set without reading its data, and look into its annotations; the names of its classes."""
    kind = find_class(config, key, registry.DATASETS)
    if not (isinstance(kind, type) and issubclass(kind, BaseDataset)) or kind.__module__.split('.')[0] not in (
        'mmengine',
        'mmdet',
        'mmseg',
    ):
        check_arguments(config, key, registry.DATASETS)
        return None  # it may read its data when it is built
    with blamed(config, key):
        dataset = registry.DATASETS.build(dict(deepcopy(config), lazy_init=True))
    classes = dataset.metainfo.get('classes')
    if isinstance(classes, str):
        raise UserError(f'{key}.metainfo.classes={classes!r} must be a list of names; for one class, ({classes!r},).')
    path = dataset.ann_file
    if _reads_coco(kind) and classes and path and is_local(path) and Path(path).exists():
        check_annotations(Path(path), classes, key)
    return classes


def _reads_coco(kind: type) -> bool:
    if not kind.__module__.startswith('mmdet'):
        return False
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO

    own = issubclass(kind, CocoDataset) and kind.load_data_list is CocoDataset.load_data_list
    return own and kind.COCOAPI is COCO


def build_optimizer(wrapper: dict, model: nn.Module) -> OptimWrapper | None:
    """Build the optimizer of a config; None where a constructor of the user's own builds several.

    Raises:
        UserError: It cannot be built.
    """
    if wrapper.get('constructor'):
        constructor = {'type': wrapper.constructor}
        find_class(constructor, 'optim_wrapper', registry.OPTIM_WRAPPER_CONSTRUCTORS, 'optim_wrapper.constructor')
    if 'optimizer' not in wrapper:
        if wrapper.get('constructor'):
            return None
        raise UserError('optim_wrapper has no optimizer.')
    find_class(wrapper.optimizer, 'optim_wrapper.optimizer', registry.OPTIMIZERS)
    plain = {name: value for name, value in wrapper.items() if name not in ('constructor', 'paramwise_cfg')}
    kind = find_class({'type': 'OptimWrapper'} | plain, 'optim_wrapper', registry.OPTIM_WRAPPERS)
    if isinstance(kind, type) and issubclass(kind, AmpOptimWrapper):  # which passes on what it does not know
        own = inspect.signature(kind).parameters
        plain = {name: value for name, value in plain.items() if name not in own} | {'type': 'OptimWrapper'}
    check_arguments({'type': 'OptimWrapper'} | plain, 'optim_wrapper', registry.OPTIM_WRAPPERS)
    clip = wrapper.get('clip_grad')
    if clip is not None:
        kind = clip.get('type', 'norm') if isinstance(clip, dict) else None
        functions = {'norm': nn.utils.clip_grad_norm_, 'value': nn.utils.clip_grad_value_}
        if kind not in functions:
            raise UserError(f"optim_wrapper.clip_grad={clip!r} must be a dict of type 'norm' or 'value'.")
        given = {name: value for name, value in clip.items() if name != 'type'}
        _check_call(functions[kind], given, 'optim_wrapper.clip_grad', 'parameters')
    keys = ('optimizer', 'constructor', 'paramwise_cfg')  # of precision and accumulation the optimizer knows nothing
    with blamed(wrapper, 'optim_wrapper'):
        return build_optim_wrapper(model, deepcopy({key: wrapper[key] for key in keys if key in wrapper}))


def _rehearse_optimizer(cfg: Config, model: nn.Module) -> None:
    built = build_optimizer(cfg.optim_wrapper, model)
    if built is None:
        return
    schedulers = cfg.get('param_scheduler') or []
    several = isinstance(schedulers, list | tuple)
    for index, scheduler in enumerate(schedulers if several else [schedulers]):
        key = f'param_scheduler.{index}' if several else 'param_scheduler'
        if not isinstance(scheduler, dict) or 'type' not in scheduler:
            if several:
                find_class(scheduler, key, registry.PARAM_SCHEDULERS)
            continue
        with blamed(scheduler, key):
            registry.PARAM_SCHEDULERS.build(
                {'end': 2**30} | deepcopy(dict(scheduler)), default_args={'optimizer': built, 'epoch_length': 100}
            )


def _check_classes(model: nn.Module, config: dict, classes: dict[str, Sequence[str]]) -> None:
    """Check that the heads are for as many classes as the data sets have.

    Raises:
        UserError: They are for more or less: labels beyond would crash on a GPU without a reason, or never be learned.
    """
    if any(type(module).__name__ == 'PanopticFPNHead' for module in model.modules()):
        return  # things and stuff have heads of their own
    heads = {
        f'model.{name}': module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int)
        and not name.startswith('backbone')
        and 'rpn_head' not in name.split('.')
        and type(module).__name__ != 'FusedSemanticHead'
    }
    for key, names in classes.items():
        wrong = {head: number for head, number in heads.items() if number != len(names)}
        if wrong:
            told = ' and '.join(f'{head}.num_classes={number}' for head, number in wrong.items())
            listed = ', '.join(names[:5]) + (', …' if len(names) > 5 else '')
            options = ' '.join(f'{head}.num_classes={len(names)}' for head in wrong if _has(config, head))
            remedy = f'Pass --cfg-options {options}' if options else f'Set num_classes={len(names)}'
            raise UserError(
                f'{told} {"does" if len(wrong) == 1 else "do"} not match {key}, which has {len(names)} classes '
                f'({listed}). {remedy}, or set metainfo=dict(classes=(...)) in every data set to those of your own.'
            )


def _has(config: Any, name: str) -> bool:
    """Whether the config of the model spells out a module's ``num_classes``."""
    for part in name.split('.')[1:]:
        config = (
            config[int(part)]
            if isinstance(config, list) and part.isdigit()
            else (config.get(part) if isinstance(config, dict) else None)
        )
    return isinstance(config, dict) and 'num_classes' in config


def _check_fit(model: nn.Module) -> None:
    """Hand empty maps from a SwinV2 backbone to the heads.

    Raises:
        UserError: A neck or a head is for other channels or another number of maps.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, SwinTransformerV2) or not hasattr(model, 'extract_feat'):
        return
    if not next(model.parameters()).is_meta:
        return
    mean = getattr(getattr(model, 'data_preprocessor', None), 'mean', None)
    takes = backbone.patch_embed.proj.in_channels
    if mean is not None and len(mean) > 1 and len(mean) != takes:
        raise UserError(
            f'model.backbone.in_channels={takes} does not match model.data_preprocessor, which makes '
            f'images of {len(mean)} channels.'
        )
    channels = [backbone.num_features[i] for i in backbone.out_indices]
    try:
        forward_on_meta(model.eval(), (_SIDE, _SIDE))
    except (RuntimeError, AssertionError, IndexError) as error:
        told = _misfit(error, model)
        if told is None:
            return  # what wants values finds none on the meta device
        raise UserError(
            f'{told} The backbone emits maps of {", ".join(map(str, channels))} channels '
            f'(out_indices={list(backbone.out_indices)}); set in_channels of what follows to that. {SEE_MORE}'
        ) from error
    except Exception:  # anybody's code, which need not run without values
        return


def _misfit(error: Exception, model: nn.Module) -> str | None:
    """Which module of a model does not take what it gets, if that is the error."""
    names = {module: f'model.{name}' for name, module in model.named_modules() if name}
    frames = [(frame, frame.f_locals.get('self')) for frame, _ in traceback.walk_tb(error.__traceback__)]
    inside = [(frame, module) for frame, module in frames if isinstance(module, nn.Module) and module in names]
    if not inside:
        return None
    frame, module = inside[-1]
    takes = next(
        (
            getattr(module, name)
            for name in ('in_channels', 'in_features', 'num_features')
            if isinstance(getattr(module, name, None), int)
        ),
        None,
    )
    image = next((value for value in frame.f_locals.values() if isinstance(value, torch.Tensor)), None)
    if type(module).__module__.startswith('torch.') and takes is not None and image is not None:
        axis = 1 if image.ndim == 4 else -1
        if image.shape[axis] == takes:
            return None
        return f'{names[module]} takes {takes} channels and gets {image.shape[axis]}.'
    last = traceback.extract_tb(error.__traceback__)[-1]
    if isinstance(error, AssertionError | IndexError) and last.name in ('forward', '_transform_inputs'):
        reason = str(error) or last.line
        return f'{names[module]} ({type(module).__name__}) does not take the maps that it gets: {reason}.'
    return None


@contextmanager
def _silence() -> Iterator[None]:
    """What frameworks warn of when something is built, they say again when it is built for good."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)
