"""A training run and a test run: from a config file and the flags of a command line to mmengine's runner.

``prepare_*`` checks everything that can be checked and writes nothing; what it returns is complete and can be run.
"""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from swinv2_mm.engine.checks.dry_run import check_form, check_weights, rehearse
from swinv2_mm.engine.checks.preflight import check_data, check_numbers, check_strategy, check_work_dir
from swinv2_mm.engine.checks.pretrained import (
    check_checkpoint,
    check_pretrained,
    skip_pretrained,
    starts_from_noise,
    tell_input_size,
)
from swinv2_mm.engine.config import add_default_hook, add_hook, load_config
from swinv2_mm.engine.config.distributed import (
    check_launcher,
    leave_processes,
    start_processes,
    this_run,
    was_restarted,
)
from swinv2_mm.engine.diagnosis.corrupt_data import named_annotations, policy_of, watch_loading
from swinv2_mm.engine.diagnosis.non_finite import blamed_on_numbers
from swinv2_mm.engine.display.pictures import draw_predictions
from swinv2_mm.engine.display.progress import screen_given_back
from swinv2_mm.engine.display.screen import dumps_in_file_only
from swinv2_mm.engine.display.tensorboard import log_to_tensorboard
from swinv2_mm.engine.recipe.compilation import compile_backbone
from swinv2_mm.engine.recipe.layer_decay import check_layer_decay
from swinv2_mm.engine.recipe.precision import set_precision
from swinv2_mm.engine.recipe.window_size import set_window_size
from swinv2_mm.engine.saving.checkpoint_hook import protect_saving, save_safely, told
from swinv2_mm.engine.saving.reading import check_resumable, latest_checkpoint, protect_loading
from swinv2_mm.errors import Stopped, UserError, say


def prepare_training(
    config: str,
    *,
    work_dir: str | None = None,
    amp: str | None = None,
    compile: bool = False,
    auto_scale_lr: bool = False,
    resume: str | None = None,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Turn a config file and the flags of ``tools/train.py`` into a config that can be run.

    Args:
        config: The config file.
        work_dir: Where checkpoints and logs go. Default: the config's, else ``./work_dirs/<name of the config>``.
        amp: See :func:`~swinv2_mm.engine.recipe.precision.set_precision`.
        compile: Compile the backbone.
        auto_scale_lr: Scale the learning rate with the batch size.
        resume: ``'auto'`` for the latest checkpoint of the work dir, if there is one, or a checkpoint.
        cfg_options: Dotted keys and values to merge into the config.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        UserError: Something would go wrong; nothing has been written.
    """
    cfg = _load(config, work_dir, cfg_options, launcher)
    check_strategy(cfg)
    if cfg.get('train_cfg') is None or cfg.get('train_dataloader') is None:
        raise UserError(f'{config} has no train_cfg or no train_dataloader: it does not describe a training.')
    check_layer_decay(cfg)
    set_precision(cfg, amp)
    if compile:
        compile_backbone(cfg)
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(
                f'--auto-scale-lr: {config} does not say for which batch size its learning rate is; pass '
                '--cfg-options auto_scale_lr.base_batch_size=16, or whatever it is.'
            )
        cfg.auto_scale_lr.enable = True
    save_safely(cfg)
    out_dir = (cfg.default_hooks.get('checkpoint') or {}).get('out_dir')
    if out_dir is not None:
        check_work_dir(out_dir, 'default_hooks.checkpoint.out_dir')
    _set_resume(cfg, resume)
    splits = ('train',) if cfg.get('val_cfg') is None else ('train', 'val')
    check_data(cfg, splits)
    model = rehearse(cfg, splits)
    check_pretrained(cfg)  # last, since it may have to fetch weights
    if cfg.get('load_from'):
        check_weights(model, cfg.load_from, whole=bool(cfg.get('resume')))
    tell_input_size(cfg)
    log_to_tensorboard(cfg)
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
    tta: bool = False,
    window_size: list[int] | None = None,
    compile: bool = False,
    cfg_options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """Turn a config file, a checkpoint and the flags of ``tools/test.py`` into a config that can be run.

    Args:
        config: The config file.
        checkpoint: The weights to test.
        work_dir: As for training.
        out: Detection: a ``.pkl`` for the predictions. Segmentation: a folder for the predicted maps.
        show: Open a window for each image, for ``wait_time`` seconds.
        show_dir: Save the pictures, ground truth left and prediction right, in this folder.
        wait_time: In seconds.
        tta: Test-time augmentation, as the config's ``tta_model`` and ``tta_pipeline`` describe it.
        window_size: Test at this window: one number, or one per stage.
        compile: Compile the backbone.
        cfg_options: Dotted keys and values to merge into the config.
        launcher: As for training.

    Raises:
        UserError: Something would go wrong; nothing has been written.
    """
    cfg = _load(config, work_dir, cfg_options, launcher)
    check_strategy(cfg)
    if cfg.get('test_cfg') is None or cfg.get('test_dataloader') is None:
        raise UserError(f'{config} has no test_cfg or no test_dataloader: it does not describe a test.')
    check_checkpoint(checkpoint)
    cfg.load_from, cfg.resume = checkpoint, False
    add_hook(cfg, 'swinv2_mm.CheckpointMatchHook')
    if out is not None:
        check_work_dir(str(Path(out).parent), '--out')
        _dump_predictions(cfg, out)
    draw_predictions(cfg, show, show_dir, wait_time)
    if tta:
        if not cfg.get('tta_model') or not cfg.get('tta_pipeline'):
            raise UserError(f'--tta: {config} has no tta_model or no tta_pipeline that would say what to augment.')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    if window_size is not None:
        window_size = window_size[0] if len(window_size) == 1 else window_size
        add_hook(cfg, 'swinv2_mm.WindowSizeHook', window_size=window_size)
    if compile:
        compile_backbone(cfg)
    check_data(cfg, ('test',))
    model = rehearse(cfg, ('test',))
    check_weights(model, checkpoint, whole=True)
    if window_size is not None:
        set_window_size(model, window_size)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a prepared config, with its processes joined, its loading and saving protected."""
    protect_loading()
    protect_saving()
    start_processes(cfg)
    with dumps_in_file_only():
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    runner.logger.info(f'environment, config, hooks and parameters: see {runner.logger.log_file}')
    if cfg.get('resume'):
        skip_pretrained(runner.model)
    watch_loading(runner)
    return runner


def train(cfg: Config) -> Runner:
    """Run a training that :func:`prepare_training` has prepared.

    Returns:
        The runner, after its last epoch.

    Raises:
        UserError: The disk takes no more.
        Stopped: By a signal; with where to go on.
    """
    try:
        with told(cfg.work_dir):
            runner = build_runner(cfg)
            if starts_from_noise(cfg):
                runner.logger.warning(
                    'The backbone starts from random weights: nothing is loaded into it. For pre-trained ones set '
                    "model.backbone.init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint='/path/to/it.pth'), or pass "
                    '--cfg-options model.backbone.init_cfg.type=swinv2_mm.Pretrained '
                    'model.backbone.init_cfg.checkpoint=/path/to/it.pth'
                )
            with named_annotations(), screen_given_back(runner), blamed_on_numbers(runner):
                runner.train()
    except Stopped as stopped:
        saved = latest_checkpoint(cfg.work_dir)
        stopped.remedy = f'--resume goes on from {saved}.' if saved else f'Nothing was saved yet in {cfg.work_dir}.'
        raise
    leave_processes()
    return runner


def test(cfg: Config) -> dict[str, float]:
    """Run a test that :func:`prepare_test` has prepared.

    Returns:
        The metrics.
    """
    runner = build_runner(cfg)
    with named_annotations(), screen_given_back(runner):
        metrics = runner.test()
    leave_processes()
    return metrics


def _load(config: str, work_dir: str | None, cfg_options: dict[str, Any] | None, launcher: str) -> Config:
    check_launcher(launcher)
    cfg = load_config(config, cfg_options)
    check_form(cfg)
    check_numbers(cfg)
    policy_of(cfg)
    cfg.launcher = launcher
    cfg.work_dir = str(Path(work_dir or cfg.get('work_dir') or Path('work_dirs', Path(config).stem)).expanduser())
    check_work_dir(cfg.work_dir)
    add_default_hook(cfg, 'progress', 'swinv2_mm.ProgressHook')
    add_default_hook(cfg, 'report', 'swinv2_mm.ReportHook')
    add_default_hook(cfg, 'non_finite', 'swinv2_mm.NonFiniteHook')
    return cfg


def _set_resume(cfg: Config, resume: str | None) -> None:
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if was_restarted():
        # What the processes before this one had reached. Of another run's checkpoints only those that were asked for.
        resume = (this_run() and latest_checkpoint(cfg.work_dir, this_run())) or resume
    if resume == 'auto':
        resume = latest_checkpoint(cfg.work_dir)
        if resume is None:
            say(f'--resume: no checkpoint in {cfg.work_dir}; training starts from the beginning.')
            cfg.resume = False
            return
    if resume is None:
        return
    cfg.resume, cfg.load_from = True, str(resume)
    checkpoint = check_checkpoint(cfg.load_from, '--resume')
    if checkpoint is not None:
        check_resumable(cfg.load_from, checkpoint)
        randomness = cfg.get('randomness') or {}
        if randomness.get('seed') is None:
            # mmengine restores the seed after the data loaders were built with another one.
            cfg.randomness = dict(randomness, seed=checkpoint['meta'].get('seed'))
        add_hook(cfg, 'swinv2_mm.CheckpointMatchHook')


def _dump_predictions(cfg: Config, out: str) -> None:
    """Have a test write its predictions where ``--out`` says, each framework in its own format."""
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    pickled = out.endswith(('.pkl', '.pickle'))
    if cfg.get('default_scope') == 'mmseg':
        if pickled:
            raise UserError(f'--out {out}: segmentation maps are saved as images; name a folder, as --out predictions.')
        metrics = [dict(metric, output_dir=out) for metric in metrics]
    else:
        if not pickled:
            raise UserError(f'--out {out}: detections are pickled; name a file that ends in .pkl.')
        dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        metrics = [*metrics, {'type': dump, 'out_file_path': out}]
    cfg.test_evaluator = metrics
