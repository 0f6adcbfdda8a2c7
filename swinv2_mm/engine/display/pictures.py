"""Pictures of a test: ground truth left, prediction right."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.config import add_hook
from swinv2_mm.engine.display.fonts import use_fonts_for, without_drawing_warnings
from swinv2_mm.engine.display.loading import Pictures, path_in, swaps_channels
from swinv2_mm.engine.display.names import OutputNames
from swinv2_mm.engine.mmengine_internals import only_drawing
from swinv2_mm.errors import UserError, listed
from swinv2_mm.registry import HOOKS


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draw every test image, ground truth left and prediction right: into a folder, in a window, or both.

    The frameworks' hooks read an image again with OpenCV's defaults, which may turn it or fail, and an error ends the
    test; this one reads it by the pipeline of the data set. A picture that cannot be drawn is logged by its name, and
    the test goes on. The visualizers would draw in rank 0 only; here each process draws its own images.

    Args:
        out_dir: The folder; its files have the names, and its folders those of the data set, see :class:`OutputNames`.
        show: Open a window for each image, in the first process only.
        wait_time: How long it stays, in seconds; 0 until a key is pressed.
        score_thr: Boxes below this score are left out; None where predictions have no score.
        bgr_to_rgb: As of :class:`~swinv2_mm.engine.display.loading.Pictures`.
    """

    def __init__(
        self,
        out_dir: str | None = None,
        show: bool = False,
        wait_time: float = 0.0,
        score_thr: float | None = None,
        bgr_to_rgb: bool = False,
    ):
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.options = {'show': show and is_main_process(), 'wait_time': wait_time}
        if score_thr is not None:
            self.options['pred_score_thr'] = score_thr
        self.bgr_to_rgb = bgr_to_rgb
        self._failed: list[str] = []

    def before_test(self, runner: Runner) -> None:
        dataset, visualizer = runner.test_dataloader.dataset, runner.visualizer
        self._pictures = Pictures(dataset, self.bgr_to_rgb)
        self._names = OutputNames(self._pictures.paths)
        with only_drawing(visualizer):
            if visualizer.dataset_meta is None:  # mmengine sets it in the first process alone
                visualizer.dataset_meta = getattr(dataset, 'metainfo', {})
            warning = use_fonts_for(visualizer, visualizer.dataset_meta.get('classes') or ())
        if warning:
            runner.logger.warning(warning)

    def after_test_iter(self, runner: Runner, outputs: Sequence, **_: Any) -> None:
        if self.out_dir is None and not self.options['show']:
            return
        for sample in outputs:
            path = 'an image without a path'
            try:
                path = path_in(sample) or path
                self._draw(runner.visualizer, path, sample)
            except Exception as error:  # of files, loading transforms, visualizers, windows
                if not self._failed:
                    reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                    # Processes other than the first show errors alone.
                    runner.logger.error(f'{path} cannot be drawn: {reason}. The test goes on.')
                self._failed.append(path)

    def _draw(self, visualizer: Any, path: str, sample: Any) -> None:
        name = self._names[path]
        file = None if self.out_dir is None else self.out_dir / name
        with only_drawing(visualizer), without_drawing_warnings():
            visualizer.add_datasample(
                name.as_posix(),
                self._pictures[path],
                sample,
                out_file=None if file is None else str(file),
                **self.options,
            )

    def after_test(self, runner: Runner) -> None:
        if len(self._failed) > 1:
            runner.logger.error(f'{len(self._failed)} pictures could not be drawn: {listed(self._failed, 10)}.')


def draw_predictions(cfg: Config, show: bool = False, show_dir: str | None = None, wait_time: float = 2.0) -> None:
    """Make a test show its predictions in windows, ``wait_time`` seconds each, or save them in a folder.

    Raises:
        UserError: The config belongs to neither framework that can draw.
    """
    if not show and show_dir is None:
        return
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise UserError('--show and --show-dir need a config with default_scope mmdet or mmseg.')
    score_thr = None
    if cfg.default_scope == 'mmdet':
        score_thr = ((cfg.get('default_hooks') or {}).get('visualization') or {}).get('score_thr', 0.3)
    # That of an earlier test, in the config that it saved, has other settings.
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or () if hook.get('type') != 'swinv2_mm.PicturesHook']
    folder = None if show_dir is None else str(Path(show_dir).expanduser().absolute())
    add_hook(
        cfg,
        'swinv2_mm.PicturesHook',
        out_dir=folder,
        show=show,
        wait_time=wait_time,
        score_thr=score_thr,
        bgr_to_rgb=swaps_channels(cfg),
    )
