"""Complete a config for a run: the edits by flags of a command line and by defaults of ours."""

import os
from pathlib import Path

from mmengine.config import Config
from mmengine.device import get_device

from swinv2_mm.compat import FUSED_ON_CPUS
from swinv2_mm.engine.config import add_hook
from swinv2_mm.engine.config.batches import input_size
from swinv2_mm.engine.config.distributed import this_run
from swinv2_mm.engine.config.parts import each, pretrained_parts
from swinv2_mm.engine.recipe.compilation import compile_backbone
from swinv2_mm.engine.saving.reading import check_resumable, latest_checkpoint, open_checkpoint
from swinv2_mm.errors import UserError, say

# By their names in default_hooks, where a config gives them arguments or, as None, leaves them out.
_HOOKS = {
    'non_finite': {'type': 'swinv2_mm.NonFiniteHook'},
    'report': {'type': 'swinv2_mm.ReportHook'},
    'progress': {'type': 'swinv2_mm.ProgressHook'},
}


def complete(cfg: Config, work_dir: str | None, compile: bool, tf32: bool, launcher: str) -> None:
    """Make the edits that a training and a test share."""
    cfg.launcher = launcher
    default = Path('work_dirs', Path(cfg.filename).stem)
    cfg.work_dir = str(Path(work_dir or cfg.get('work_dir') or default).expanduser())
    hooks = _HOOKS | dict(cfg.get('default_hooks') or {})
    # mmengine refuses None for hooks that it does not know; its base class does nothing.
    cfg.default_hooks = hooks | {name: {'type': 'mmengine.hooks.Hook'} for name in _HOOKS if hooks[name] is None}
    if compile:
        compile_backbone(cfg)
    if tf32:
        cfg.env_cfg = dict(cfg.get('env_cfg') or {}, tf32=True)


def fuse_optimizer(cfg: Config) -> None:
    """Let AdamW update on a CPU in one pass over parameters and moments instead of five, a tenth of an iteration.

    On GPUs torch chooses by itself.
    """
    optimizer = cfg.optim_wrapper.get('optimizer') or {}
    if get_device() != 'cpu':
        return
    if not FUSED_ON_CPUS:
        optimizer.pop('fused', None)  # an error there
    elif optimizer.get('type') == 'AdamW' and not cfg.get('runner_type') and 'foreach' not in optimizer:
        optimizer.setdefault('fused', True)


def set_resume(cfg: Config, resume: str | Path | None) -> None:
    """Find the checkpoint to go on from, and take its seed."""
    if resume is None and cfg.get('resume'):
        resume = cfg.get('load_from') or 'auto'
    if os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') != '0':
        # torchrun lost a process: from this run's last checkpoint, not from another run's, unless that was asked for.
        resume = (this_run() and latest_checkpoint(cfg.work_dir, this_run())) or resume
    if resume == 'auto':
        resume = latest_checkpoint(cfg.work_dir)
        if resume is None:
            say(f'--resume: no checkpoint in {cfg.work_dir}; training starts from the beginning.')
            cfg.resume = False
    if resume is None:
        return
    cfg.resume, cfg.load_from = True, str(resume)
    add_hook(cfg, 'swinv2_mm.ChangedScheduleHook')
    checkpoint = open_checkpoint(cfg.load_from, '--resume')
    if checkpoint is None:
        return
    check_resumable(cfg.load_from, checkpoint)
    randomness = cfg.get('randomness') or {}
    if randomness.get('seed') is None:
        # mmengine restores the seed only after it has built the data loaders with another one.
        cfg.randomness = dict(randomness, seed=checkpoint['meta'].get('seed'))
    add_hook(cfg, 'swinv2_mm.CheckpointMatchHook')


def set_input_size(cfg: Config) -> None:
    """Give every ``swinv2_mm.Pretrained`` the size of the images, for its log about padding."""
    size = input_size(cfg)
    for _, init_cfg, _ in pretrained_parts(cfg.get('model')):
        if size is not None and init_cfg['type'] == 'swinv2_mm.Pretrained':
            init_cfg.setdefault('input_size', size)


def set_out(cfg: Config, out: str) -> None:
    """Have a test write its predictions to the path of ``--out``, each framework in its own format."""
    metrics = [metric for _, metric in each(cfg.test_evaluator, '')]
    pickled = out.endswith(('.pkl', '.pickle'))
    if cfg.get('default_scope') == 'mmseg':
        if pickled:
            raise UserError(f'--out {out}: segmentation maps are saved as images; name a folder, as --out predictions.')
        metrics = [dict(metric, output_dir=str(Path(out).expanduser())) for metric in metrics]
    else:
        if not pickled:
            raise UserError(f'--out {out}: detections are pickled; name a file that ends in .pkl.')
        dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        metrics = [*metrics, {'type': dump, 'out_file_path': out}]
    cfg.test_evaluator = metrics
