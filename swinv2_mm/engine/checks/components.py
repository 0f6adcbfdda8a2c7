"""Look up what the runner builds by itself: data loaders, loops, metrics, hooks, visualizers, log processor, runner.

Any of these may do something when it is built, so class and arguments are only looked up.
"""

from copy import deepcopy
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.lookup import check_arguments, check_call, check_package, find_class, find_type, with_key
from swinv2_mm.engine.config.parts import each
from swinv2_mm.errors import UserError

# Keys of a data loader that mmengine builds or reads itself: they are no arguments of torch's.
_OF_MMENGINE = 'sampler batch_sampler collate_fn worker_init_fn num_batch_per_epoch disable_subprocess_warning'.split()


def check_components(cfg: Config, context: Context) -> None:
    """Look up class and arguments of everything that the runner builds by itself."""
    for split in context.splits:
        _check_loader(cfg.get(f'{split}_dataloader'), f'{split}_dataloader')
        _check_loop(dict(cfg[f'{split}_cfg']), split)
        if split != 'train':
            key, evaluator = f'{split}_evaluator', cfg[f'{split}_evaluator']
            if not evaluator:
                raise UserError(f'{key}={evaluator!r} measures nothing.')
            for place, metric in each(evaluator, key):
                if not isinstance(metric, dict) or 'metrics' not in metric:  # else an evaluator of the user's own
                    check_package(check_arguments(metric, place, registry.METRICS), place)
    hooks = [(f'default_hooks.{name}', hook) for name, hook in (cfg.get('default_hooks') or {}).items()]
    for key, hook in [*hooks, *each(cfg.get('custom_hooks'), 'custom_hooks')]:
        if hook is not None:
            _check_hook(hook, key)
    visualizer = cfg.get('visualizer')
    if visualizer:
        check_arguments({'name': None} | visualizer, 'visualizer', registry.VISUALIZERS)
        for key, backend in each(visualizer.get('vis_backends'), 'visualizer.vis_backends'):
            backend = {'save_dir': None} | backend if isinstance(backend, dict) else backend
            check_package(check_arguments(backend, key, registry.VISBACKENDS), key)
    processor = {'type': 'LogProcessor'} | (cfg.get('log_processor') or {})
    check_arguments(processor, 'log_processor', registry.LOG_PROCESSORS)
    if cfg.get('runner_type'):
        find_type(cfg.runner_type, 'runner_type', registry.RUNNERS)
    if cfg.get('randomness'):
        check_call(Runner.set_randomness, cfg.randomness, 'randomness', 'self')


def _check_loader(loader: Any, key: str) -> None:
    if not isinstance(loader, dict) or not all(isinstance(loader.get(name), dict) for name in ('sampler', 'dataset')):
        raise UserError(f'{key} needs a dataset and a sampler, each a dict with a type.')
    check_arguments(loader['sampler'], f'{key}.sampler', registry.DATA_SAMPLERS, 'dataset', 'seed')
    if loader.get('batch_sampler'):
        batches = f'{key}.batch_sampler'
        check_arguments(loader['batch_sampler'], batches, registry.DATA_SAMPLERS, 'sampler', 'batch_size')
    for name in ('collate_fn', 'worker_init_fn'):
        if isinstance(loader.get(name), dict):
            find_class(loader[name], f'{key}.{name}', registry.FUNCTIONS)
    try:
        DataLoader(**{name: value for name, value in {**loader, 'dataset': [0]}.items() if name not in _OF_MMENGINE})
    except (TypeError, ValueError) as error:
        raise UserError(f'{key}: {error}.') from error


def _check_loop(loop: dict, split: str) -> None:
    if 'type' not in loop:
        by_epoch = loop.pop('by_epoch', None) if split == 'train' else None
        if split == 'train' and not isinstance(by_epoch, bool):
            raise UserError(f'train_cfg needs by_epoch=True, or by_epoch=False, or a type; it is {loop}.')
        default = {'train': 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop', 'val': 'ValLoop'}
        loop['type'] = default.get(split, 'TestLoop')
    given = ['runner', 'dataloader', 'evaluator'][: 2 if split == 'train' else 3]
    check_arguments(loop, f'{split}_cfg', registry.LOOPS, *given)


def _check_hook(hook: dict, key: str) -> None:
    plain = {name: value for name, value in hook.items() if name != 'priority'}
    kind = check_arguments(plain, key, registry.HOOKS)
    known = getattr(kind, '__module__', '').startswith(('mmengine.hooks', 'swinv2_mm.'))
    if known and 'Visualization' not in kind.__name__:
        with with_key(plain, key):
            built = registry.HOOKS.build(deepcopy(plain))
        if isinstance(built, CheckpointHook):  # it passes on what it does not know, after an epoch
            check_call(Runner.save_checkpoint, built.args, key, 'self', 'out_dir', 'filename')
