"""A training run and a test run: from a config file and the flags of a command line to mmengine's runner.

``prepare_*`` reads the config, completes it (all edits) and checks it (no edits); it writes nothing.
"""

import math
import time
from logging import Logger
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS, build_runner_from_cfg
from mmengine.runner import Runner

from swinv2_mm.engine.census.table import census_table
from swinv2_mm.engine.checks import run_checks
from swinv2_mm.engine.checks.weights import starts_from_noise
from swinv2_mm.engine.config import add_hook, read_config
from swinv2_mm.engine.diagnosis.corrupt_data import named_annotations, watch_loading
from swinv2_mm.engine.diagnosis.non_finite import blamed_on_numbers
from swinv2_mm.engine.display.maps import name_maps
from swinv2_mm.engine.display.mistakes.hook import report_mistakes
from swinv2_mm.engine.display.pictures import draw_predictions
from swinv2_mm.engine.display.progress import dumps_in_file_only, screen_given_back
from swinv2_mm.engine.display.tensorboard import log_to_tensorboard
from swinv2_mm.engine.recipe.precision import set_precision, set_tf32
from swinv2_mm.engine.recipe.pretrained import leave_out_pretrained
from swinv2_mm.engine.runs.complete import complete, fuse_optimizer, set_input_size, set_out, set_resume
from swinv2_mm.engine.runs.neighbours import blamed_on_others
from swinv2_mm.engine.runs.processes import leave_processes, started_processes
from swinv2_mm.engine.saving.checkpoint_hook import protect_saving, save_safely, told
from swinv2_mm.engine.saving.reading import latest_checkpoint, protect_loading
from swinv2_mm.engine.saving.stopping.loops import set_loop
from swinv2_mm.engine.saving.stopping.request import REQUEST, listening, seconds
from swinv2_mm.errors import Stopped, ToldToEnd, UserError


def prepare_training(
    config: str,
    *,
    work_dir: str | None = None,
    amp: str | None = None,
    compile: bool = False,
    tf32: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    max_time: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Turn a config file and the flags of ``tools/train.py``, see its ``--help``, into a config that can be run.

    Args:
        resume: ``'auto'`` for the latest checkpoint of the work dir, if there is one, or a checkpoint.
        max_time: A duration from now on, such as ``'11:50:00'``, after which the run saves and ends.
        cfg_options: Dotted keys and values to merge into the config.

    Raises:
        UserError: The run would fail or have no effect; nothing has been written.
    """
    deadline = time.monotonic() + seconds(max_time) if max_time else math.inf
    cfg = read_config(config, cfg_options, 'train')
    complete(cfg, work_dir, compile, tf32, launcher)
    set_precision(cfg, amp)
    fuse_optimizer(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(
                f'--auto-scale-lr: {config} does not say for which batch size its learning rate is; pass '
                '--cfg-options auto_scale_lr.base_batch_size=16, or whatever it is.'
            )
        cfg.auto_scale_lr.enable = True
    save_safely(cfg)
    set_resume(cfg, resume)
    set_input_size(cfg)
    log_to_tensorboard(cfg)
    _check(cfg, ('train',) if cfg.get('val_cfg') is None else ('train', 'val'))
    # Attributes of the object: they are no keys of the config.
    object.__setattr__(cfg, 'max_time', max_time)
    object.__setattr__(cfg, 'deadline', deadline)
    return cfg


def prepare_test(
    config: str,
    checkpoint: str,
    *,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2.0,
    report: bool = False,
    tta: bool = False,
    window_size: list[int] | None = None,
    compile: bool = False,
    tf32: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Turn a config file, a checkpoint and the flags of ``tools/test.py`` into a config, see `prepare_training`."""
    cfg = read_config(config, cfg_options, 'test')
    complete(cfg, work_dir, compile, tf32, launcher)
    cfg.load_from, cfg.resume = checkpoint, False
    add_hook(cfg, 'swinv2_mm.CheckpointMatchHook')
    if out is not None:
        set_out(cfg, out)
    name_maps(cfg)
    draw_predictions(cfg, show, show_dir, wait_time)
    if report:
        report_mistakes(cfg)
    if tta:
        if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
            raise UserError(f'--tta: {config} has no tta_model or no tta_pipeline that would say what to augment.')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    if window_size is not None:
        sizes = window_size[0] if len(window_size) == 1 else window_size
        add_hook(cfg, 'swinv2_mm.WindowSizeHook', window_size=sizes)
    _check(cfg, ('test',))
    return cfg


def _check(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check a config, and keep what was found for the log, which does not exist yet."""
    # An attribute of the object: it is no key of the config.
    object.__setattr__(cfg, 'found', run_checks(cfg, splits))


def _log_census(cfg: Config, logger: Logger) -> None:
    """Log what :func:`_check` found."""
    context = getattr(cfg, 'found', None)
    if context is not None:
        if context.censuses:
            logger.info('data, after the filters of the data sets:\n\n%s\n', census_table(context.censuses))
        for warning in [*context.warnings, *(said for census in context.censuses for said in census.warnings)]:
            logger.warning(warning)
        object.__setattr__(cfg, 'found', None)  # frees the data lists


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a prepared config: join the processes, protect loading and saving."""
    protect_loading()
    protect_saving()
    with started_processes(cfg), dumps_in_file_only():
        runner = build_runner_from_cfg(cfg, RUNNERS)
    _log_census(cfg, runner.logger)
    runner.logger.info(f'environment, config, hooks and parameters: see {runner.logger.log_file}')
    if cfg.get('resume'):
        leave_out_pretrained(runner.model)
    watch_loading(runner)
    return runner


def train(cfg: Config) -> Runner:
    """Run a training that :func:`prepare_training` has prepared, and return its runner.

    Raises:
        UserError: The disk is full or read-only, data are corrupt, the loss is not finite, or another process is gone.
        Stopped: By a signal; the message says where to go on.
        ToldToEnd: By SIGUSR1, SIGTERM or ``max_time``, and has saved.
    """
    try:
        with told(cfg.work_dir), listening(getattr(cfg, 'deadline', math.inf)), blamed_on_others():
            runner = build_runner(cfg)
            if not set_loop(runner, getattr(cfg, 'max_time', None)):
                REQUEST.forget()  # a signal ends such a run at once
            set_tf32(cfg, trains=True)
            if starts_from_noise(cfg):
                backbone = cfg.model.backbone
                ours = str(backbone.get('type')).endswith('SwinTransformerV2') and not backbone.get('from_scratch')
                runner.logger.warning(
                    'The backbone starts from random weights. For pretrained ones pass --cfg-options '
                    'model.backbone.init_cfg.type=swinv2_mm.Pretrained '
                    'model.backbone.init_cfg.checkpoint=/path/to/it.pth, or set them in the config.'
                    + (' Without any, model.backbone.from_scratch=True learns sooner.' if ours else '')
                )
            with named_annotations(), screen_given_back(runner), blamed_on_numbers(runner):
                runner.train()
    except ToldToEnd:
        leave_processes()
        raise
    except Stopped as stopped:
        saved = latest_checkpoint(cfg.work_dir)
        stopped.remedy = f'--resume goes on from {saved}.' if saved else f'Nothing was saved yet in {cfg.work_dir}.'
        raise
    leave_processes()
    return runner


def test(cfg: Config) -> dict[str, float]:
    """Run a test that :func:`prepare_test` has prepared, and return its metrics."""
    with blamed_on_others():
        runner = build_runner(cfg)
        set_tf32(cfg, trains=False)
        with named_annotations(), screen_given_back(runner):
            metrics = runner.test()
    leave_processes()
    return metrics
