"""Pictures of a test: ground truth left, prediction right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.config import add_hook
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draw every test image into one folder, ground truth left and prediction right, under the image's own name.

    MMSegmentation's hook nests folders and adds counters; MMDetection's joins a relative folder to the work dir once
    per batch. The visualizers draw in rank 0 only: of a distributed test they show the images of that process.

    Args:
        out_dir: The folder.
        score_thr: Boxes below this score are left out; None where predictions have no score.
    """

    def __init__(self, out_dir: str, score_thr: float | None = None):
        self.out_dir = Path(out_dir)
        self.options = {} if score_thr is None else {'pred_score_thr': score_thr}

    def after_test_iter(self, runner: Runner, outputs: Sequence, **_: Any) -> None:
        import mmcv

        for sample in outputs:
            image = mmcv.imread(sample.img_path, channel_order='rgb')
            file = self.out_dir / Path(sample.img_path).name
            runner.visualizer.add_datasample(file.stem, image, sample, out_file=str(file), **self.options)


def draw_predictions(cfg: Config, show: bool = False, show_dir: str | None = None, wait_time: float = 2.0) -> None:
    """Make a test show its predictions in windows, ``wait_time`` seconds each, or save them in a folder.

    Raises:
        UserError: The config belongs to neither framework that can draw.
    """
    if not show and show_dir is None:
        return
    types = {'mmdet': 'DetVisualizationHook', 'mmseg': 'SegVisualizationHook'}
    if cfg.get('default_scope') not in types:
        raise UserError('--show and --show-dir need a config with default_scope mmdet or mmseg.')
    hooks = cfg.get('default_hooks') or {}
    hook = hooks.get('visualization') or {'type': types[cfg.default_scope]}
    if show:
        hook = dict(hook, draw=True, interval=1, show=True, wait_time=wait_time)
        cfg.default_hooks = dict(hooks, visualization=hook)
    if show_dir is not None:
        folder = str(Path(show_dir).expanduser().absolute())
        score_thr = hook.get('score_thr', 0.3) if cfg.default_scope == 'mmdet' else None
        add_hook(cfg, 'swinv2_mm.PicturesHook', out_dir=folder, score_thr=score_thr)
