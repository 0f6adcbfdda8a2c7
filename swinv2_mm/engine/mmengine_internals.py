"""Everything private of mmengine, mmdet and mmseg that we touch, each with the version that it was written for.

A release of theirs may change any of it without notice: after an upgrade, read this file first.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from traceback import walk_tb
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.dataset import BaseDataset
from mmengine.hooks import CheckpointHook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.model.weight_init import update_init_info
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import Registry
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, nn

# --- reading configs ---


@contextmanager
def files_being_read() -> Iterator[list[str]]:
    """Record the config files that mmengine has begun to read; after an error, the last one is where it happened.

    mmengine 0.10: ``Config._file2dict`` and, for pure-Python configs, ``Config._parse_lazy_import`` read one file each
    and call themselves for the files that it inherits.
    """
    files: list[str] = []

    def recorded(read: Callable) -> staticmethod:
        def call(filename: str, *args: Any, **kwargs: Any) -> Any:
            files.append(os.path.abspath(os.path.expanduser(filename)))
            content = read(filename, *args, **kwargs)
            files.pop()
            return content

        return staticmethod(call)

    own = {name: vars(Config)[name] for name in ('_file2dict', '_parse_lazy_import')}
    for name, method in own.items():
        setattr(Config, name, recorded(method.__func__))
    try:
        yield files
    finally:
        for name, method in own.items():
            setattr(Config, name, method)


def content_of(cfg: Config) -> dict:
    """The top level of a config; ``dict.items`` of it gives lazy objects as they are. mmengine 0.10."""
    return cfg._cfg_dict


def names_imported_by(cfg: Config) -> set[str]:
    """The top-level names that a pure-Python config only imports. mmengine 0.10."""
    return cfg._imported_names


def parse_value(text: str) -> Any:
    """The value of a ``--cfg-options key=value``, as mmengine's ``DictAction`` parses it. mmengine 0.10.

    Raises:
        AssertionError: The brackets do not match.
    """
    return DictAction._parse_iterable(text)


# --- building from registries, running ---


@contextmanager
def watched_builds(failed: Callable[[Exception, Registry, list, dict], None]) -> Iterator[None]:
    """Call a function when a registry fails to build something, once for each config on the way out.

    mmengine 0.10: everything that a config names is built by ``Registry.build(cfg, default_args)``, which is public;
    we replace it for a while.

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

    Registry.build = build
    try:
        yield
    finally:
        Registry.build = own


# --- checkpoints ---


class OpenRunner(Runner):
    """mmengine's runner, with public names for two methods that it hides (mmengine 0.10)."""

    def init_weights(self) -> None:
        """Initialise the parameters; mmengine calls it in ``train()``. A subclass may override it."""
        super()._init_model_weights()

    def _init_model_weights(self) -> None:
        self.init_weights()

    def save_checkpoint_in_all(self, *args, **kwargs) -> None:
        """Save a checkpoint in this process; mmengine decorates ``save_checkpoint`` to run in rank 0 only."""
        Runner.save_checkpoint.__wrapped__(self, *args, **kwargs)


class OpenCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, with public names for the two methods by which it saves (mmengine 0.10)."""

    def save_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save the checkpoint of an epoch or iteration. A subclass may override it."""
        super()._save_checkpoint_with_step(runner, step, meta)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        self.save_step(runner, step, meta)

    def save_best_of(self, runner: Runner, metrics: dict) -> None:
        """Save the best checkpoint, if these metrics are the best. A subclass may override it."""
        super()._save_best_checkpoint(runner, metrics)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        self.save_best_of(runner, metrics)


def loaded_from(runner: Runner) -> str:
    """Return the checkpoint that a runner resumes or loads (mmengine 0.10)."""
    return runner._load_from


def update_val_interval(loop: BaseLoop) -> None:
    """Set a loop's ``val_interval`` to what ``dynamic_intervals`` says for now (mmengine 0.10)."""
    loop._decide_current_val_interval()


def note_initialised(module: nn.Module, info: str) -> None:
    """Note where the parameters of a module came from, for mmengine's log of them (mmengine 0.10)."""
    if hasattr(module, '_params_init_info'):
        update_init_info(module, init_info=info)


# --- data sets and heads of mmdet and mmseg ---


def failed_dataset(error: BaseException) -> tuple[BaseDataset, bool] | None:
    """Return the data set that raised an error while it read its annotations (mmengine 0.10, mmdet 3.3).

    It is built deep inside of a runner, which tells nobody; so it is looked up in the traceback.

    Returns:
        The data set, and whether it was its list that could not be read. If not, the list was empty: ``full_init`` then
        asks NumPy to concatenate nothing. None if no data set raised the error.
    """
    frames = [(frame.f_code.co_name, frame.f_locals.get('self')) for frame, _ in walk_tb(error.__traceback__)]
    found = [owner for name, owner in frames if name == 'full_init']
    if not found or not isinstance(found[-1], BaseDataset):
        return None
    return found[-1], 'load_data_list' in dict(frames)


def unbuilt_dataloaders(runner: Runner) -> dict[str, dict]:
    """Return the configs of the data loaders that a runner has not built yet, by split (mmengine 0.10)."""
    loaders = {split: getattr(runner, f'_{split}_dataloader') for split in ('train', 'val', 'test')}
    return {split: loader for split, loader in loaders.items() if isinstance(loader, dict)}


def set_dataloader(runner: Runner, split: str, loader: dict) -> None:
    """Have a runner build a data loader of a split from another config (mmengine 0.10)."""
    setattr(runner, f'_{split}_dataloader', loader)


def box_modules() -> tuple[type, type]:
    """Return the base classes of mmdet's dense heads and of its RoI extractors (mmdet 3.3)."""
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

    return BaseDenseHead, BaseRoIExtractor


# --- training steps and logs ---


def losses_of(model: BaseModel, batch: Any) -> dict[str, Tensor]:
    """Run the forward pass of a training step (mmengine 0.10)."""
    return model._run_forward(model.data_preprocessor(batch, True), mode='loss')


def init_amp_wrapper(wrapper: AmpOptimWrapper, dtype: Any, scaler: Any, scale: float | None, **kwargs: Any) -> None:
    """Do what ``AmpOptimWrapper.__init__`` does, which asks for an accelerator (mmengine 0.10).

    Args:
        wrapper: The one to initialise.
        dtype: The data type of autocast.
        scaler: A GradScaler.
        scale: The loss scale, if it is fixed.
        **kwargs: Those of ``OptimWrapper``.
    """
    OptimWrapper.__init__(wrapper, **kwargs)
    wrapper.cast_dtype, wrapper.loss_scaler, wrapper._scale_update_param = dtype, scaler, scale


@contextmanager
def filtered_screen(keep: Callable[[logging.LogRecord], bool]) -> Iterator[None]:
    """Filter what the loggers that are built in this context print (mmengine 0.10).

    Runners log as soon as they have a logger: adding the filter afterwards is too late.
    """
    build = MMLogger.__init__

    @wraps(build)
    def build_filtered(self: MMLogger, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        for handler in self.handlers:
            if type(handler) is logging.StreamHandler:  # a FileHandler is one, too
                handler.addFilter(keep)

    MMLogger.__init__ = build_filtered
    try:
        yield
    finally:
        MMLogger.__init__ = build
