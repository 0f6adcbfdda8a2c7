"""Everything private of mmengine, mmdet and mmseg that we touch, as it is in mmengine 0.10 and mmdet 3.3.

A release of theirs may change any of it without notice: after an upgrade, read this file first.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from inspect import signature
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.model.weight_init import update_init_info
from mmengine.optim import OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import Runner
from torch import nn


@contextmanager
def _replaced(owner: Any, methods: dict[str, Any]) -> Iterator[None]:
    """Replace methods of a class, or functions of a module, for a while."""
    own = {name: vars(owner)[name] for name in methods}
    for name, method in methods.items():
        setattr(owner, name, method)
    try:
        yield
    finally:
        for name, method in own.items():
            setattr(owner, name, method)


@contextmanager
def files_being_read() -> Iterator[list[str]]:
    """Record the files of a config that mmengine has begun to read; an error happened in the last one."""
    files: list[str] = []

    def recorded(read: Callable) -> staticmethod:
        def call(filename: str, *args: Any, **kwargs: Any) -> Any:
            files.append(os.path.abspath(os.path.expanduser(filename)))
            content = read(filename, *args, **kwargs)
            files.pop()
            return content

        return staticmethod(call)

    names = '_file2dict', '_parse_lazy_import'  # of text and of pure Python; they call themselves for what is inherited
    with _replaced(Config, {name: recorded(getattr(Config, name)) for name in names}):
        yield files


def content_of(cfg: Config) -> dict:
    """The top level of a config; ``dict.items`` of it gives lazy objects as they are."""
    return cfg._cfg_dict


def names_imported_by(cfg: Config) -> set[str]:
    """The top-level names that a pure-Python config only imports."""
    return cfg._imported_names


@contextmanager
def watched_builds(failed: Callable[[Exception, Registry, list, dict], None]) -> Iterator[None]:
    """Call a function when a registry fails to build something, once for each config on the way out.

    Args:
        failed: Takes the exception, the registry, the configs that were being built, the innermost last, and the
            default arguments. The scope is that of the build.
    """
    own, chain = Registry.build, []

    def build(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        chain.append(cfg)
        try:
            return own(self, cfg, *args, **kwargs)
        except Exception as error:
            failed(error, self, chain, (args[0] if args else kwargs.get('default_args')) or {})
            raise
        finally:
            chain.pop()

    with _replaced(Registry, {'build': build}):
        yield


@contextmanager
def calling_after_joining(call: Callable[[], None]) -> Iterator[None]:
    """Call a function as soon as a runner that is built in this context has joined the other processes."""
    module = import_module('mmengine.runner.runner')
    join = module.init_dist

    def join_and_call(*args: Any, **kwargs: Any) -> None:
        join(*args, **kwargs)
        call()

    with _replaced(module, {'init_dist': join_and_call}):
        yield


def collect_by_messages() -> None:
    """Have the processes collect results of a test by messages, from now on.

    With ``collect_device='cpu'``, the default of metrics, they write files into a folder that all of them must share.
    """
    module: Any = import_module('mmengine.dist.dist')
    module.collect_results_cpu = lambda result_part, size, tmpdir=None: module.collect_results_gpu(result_part, size)


class OpenRunner(Runner):
    """mmengine's runner, with public names for two methods that it hides."""

    def init_weights(self) -> None:
        """Initialise the parameters; mmengine calls it in ``train()``. A subclass may override it."""
        super()._init_model_weights()

    def _init_model_weights(self) -> None:
        self.init_weights()

    def save_checkpoint_in_all(self, *args, **kwargs) -> None:
        """Save a checkpoint in this process; mmengine decorates ``save_checkpoint`` to run in rank 0 only."""
        Runner.save_checkpoint.__wrapped__(self, *args, **kwargs)


class OpenCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with public names for the two methods by which it saves."""

    def save_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save the checkpoint of an epoch or iteration."""
        super()._save_checkpoint_with_step(runner, step, meta)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self.save_step(runner, step, meta)

    def save_best_of(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint, if these metrics are the best."""
        super()._save_best_checkpoint(runner, metrics)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        self.save_best_of(runner, metrics)


class ScheduledGroups:
    """What a parameter scheduler needs of its optimizer: groups, and two names by which it asks who steps first."""

    _global_step = 0

    def __init__(self, groups: list[dict]) -> None:
        self.param_groups = groups

    def step(self) -> None:
        """Not called."""


# What a parameter scheduler changes while it runs; beside these, its state is what it was built with.
SCHEDULER_PROGRESS = '_global_step', '_last_value', 'last_step'
# What ReduceOnPlateau changes: it depends on metrics.
PLATEAU_PROGRESS = 'last_step', 'best', 'num_bad_epochs', 'cooldown_counter'


def loaded_from(runner: Runner) -> str:
    """The checkpoint that a runner resumes or loads."""
    return runner._load_from or ''


def train_loop_config(runner: Runner) -> dict:
    """The config of a runner's training loop, which is not built yet."""
    return runner._train_loop


def set_train_loop(runner: Runner, config: dict) -> None:
    """Have a runner build another training loop; its config stays as it is."""
    runner._train_loop = config


@contextmanager
def lazy_batches(batches: Callable[[Any], Any]) -> Iterator[None]:
    """Let a loop over iterations take its batches from ``batches(data loader)``, or, if that is None, from mmengine.

    mmengine starts the data workers when it builds the loop, before it knows where a resumed run is.
    """
    module = import_module('mmengine.runner.loops')
    own = module._InfiniteDataloaderIterator
    with _replaced(module, {'_InfiniteDataloaderIterator': lambda loader: batches(loader) or own(loader)}):
        yield


def update_val_interval(loop: Any) -> None:
    """Set a loop's ``val_interval`` to what ``dynamic_intervals`` says for now."""
    loop._decide_current_val_interval()


def note_initialised(module: nn.Module, info: str) -> None:
    """Note where the parameters of a module came from, for mmengine's log of them."""
    if hasattr(module, '_params_init_info'):
        update_init_info(module, init_info=info)


def unbuilt_dataloaders(runner: Runner) -> dict[str, dict]:
    """The configs of the data loaders that a runner has not built yet, by split."""
    loaders = {split: getattr(runner, f'_{split}_dataloader') for split in ('train', 'val', 'test')}
    return {split: loader for split, loader in loaders.items() if isinstance(loader, dict)}


def set_dataloader(runner: Runner, split: str, loader: dict) -> None:
    """Have a runner build a data loader of a split from another config."""
    setattr(runner, f'_{split}_dataloader', loader)


def box_modules() -> tuple[type, type]:
    """The base classes of mmdet's dense heads and of its RoI extractors."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

    return BaseDenseHead, BaseRoIExtractor


def losses_of(model: BaseModel, batch: Any) -> Any:
    """Run the forward pass of a training step."""
    return model._run_forward(model.data_preprocessor(batch, True), mode='loss')


def init_amp_wrapper(wrapper: Any, dtype: Any, scaler: Any, scale: float | None, **kwargs: Any) -> None:
    """Do what ``AmpOptimWrapper.__init__`` does, which asks for an accelerator; ``kwargs`` are ``OptimWrapper``'s."""
    OptimWrapper.__init__(wrapper, **kwargs)
    wrapper.cast_dtype, wrapper.loss_scaler, wrapper._scale_update_param = dtype, scaler, scale


@contextmanager
def filtered_screen(keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Filter what the loggers print that are built in this context: a runner logs as soon as it has one."""
    build = MMLogger.__init__

    @wraps(build)
    def build_filtered(self: MMLogger, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        for handler in self.handlers:
            if type(handler) is logging.StreamHandler:  # a FileHandler is one, too
                handler.addFilter(keep)

    with _replaced(MMLogger, {'__init__': build_filtered}):
        yield


@contextmanager
def only_drawing(visualizer: Any) -> Iterator[None]:
    """Let a visualizer draw in every process, of which it leaves out all but the first, and store nothing in its
    backends, such as TensorBoard."""
    backends, visualizer._vis_backends = visualizer._vis_backends, {}
    try:
        with _replaced(import_module('mmengine.dist.utils'), {'is_main_process': lambda group=None: True}):
            yield
    finally:
        visualizer._vis_backends = backends


def set_label_drawing(visualizer: Any, draw: Callable) -> None:
    """Have a function write the class names on semantic maps in the place of mmseg's visualizer, which uses OpenCV.

    Args:
        visualizer: Those of mmdet, which use matplotlib, stay as they are.
        draw: Takes the picture with the map, the map, and the class names and colours; returns the labelled picture.
    """
    own = getattr(visualizer, '_draw_sem_seg', None)
    if own is None or 'with_labels' not in signature(own).parameters:
        return

    def draw_sem_seg(image: Any, sem_seg: Any, classes: Any, palette: Any, with_labels: bool = True) -> Any:
        drawn = own(image, sem_seg, classes, palette, False)
        return draw(drawn, sem_seg, classes, palette) if with_labels else drawn

    visualizer._draw_sem_seg = draw_sem_seg
