"""``tools/test.py --report``: collects the mistakes of a test, and writes the page."""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dist import collect_results, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.config import add_hook
from swinv2_mm.engine.config.parts import each
from swinv2_mm.engine.display.gallery.outlines import jpeg
from swinv2_mm.engine.display.gallery.page import (
    below,
    colours_of,
    common_folder,
    css,
    hues,
    in_words,
    within,
    write_gallery,
)
from swinv2_mm.engine.display.loading import Pictures, map_of, path_in, swaps_channels
from swinv2_mm.engine.display.mistakes.detection import Detections
from swinv2_mm.engine.display.mistakes.segmentation import Maps
from swinv2_mm.engine.display.mistakes.worst import Worst, chosen
from swinv2_mm.errors import UserError
from swinv2_mm.registry import HOOKS


@HOOKS.register_module()
class MistakesHook(Hook):
    """Compare the predictions of a test with the annotations of its data set, and write one page.

    Each process judges its own pictures, and the first writes. Every picture is counted; the page shows the worst.

    Args:
        out_file: The page.
        segmentation: Semantic maps of MMSegmentation, in the place of objects of MMDetection.
        masks: Compare objects by their masks in the place of their boxes.
        score_thr: Detections below are not counted.
        bgr_to_rgb: As of :class:`~swinv2_mm.engine.display.loading.Pictures`.
        most: How many pictures of each kind of mistake.
    """

    def __init__(
        self,
        out_file: str,
        segmentation: bool = False,
        masks: bool = False,
        score_thr: float = 0.3,
        bgr_to_rgb: bool = False,
        most: int = 20,
    ):
        self.out_file = Path(out_file)
        self.segmentation, self.masks, self.score_thr = segmentation, masks, score_thr
        self.bgr_to_rgb, self.most = bgr_to_rgb, most

    def before_test(self, runner: Runner) -> None:
        dataset = runner.test_dataloader.dataset
        self._pictures = Pictures(dataset, self.bgr_to_rgb)
        key = 'seg_map_path' if self.segmentation else 'instances'
        if not any(self._pictures.sample(path)[1].get(key) for path in self._pictures.paths):
            raise UserError(
                '--report compares predictions with annotations, and the test data have none. tools/predict.py '
                '--report shows predictions alone.'
            )
        metainfo = getattr(dataset, 'metainfo', {})
        self._classes = [str(name) for name in metainfo.get('classes') or ()]
        if self.segmentation:
            self._colours = colours_of(metainfo.get('palette'), len(self._classes))
            metrics = getattr(runner.test_evaluator, 'metrics', ())
            ignored = next((metric.ignore_index for metric in metrics if hasattr(metric, 'ignore_index')), 255)
            self._collector: Any = Maps(self._classes, self._colours, ignored)
        else:
            self._colours = hues(len(self._classes))
            self._collector = Detections(self._classes, self.score_thr, self.masks)
        self._records: list[dict] = []
        self._worst = Worst(self.most)

    def after_test_iter(self, runner: Runner, outputs: Sequence, **_: Any) -> None:
        for sample in outputs:
            path = path_in(sample)
            if path not in self._pictures:
                raise UserError(
                    f'--report: the test gives a sample with img_path {path!r}, which is no image of its data set; '
                    'keep img_path among the meta_keys of the last transform (PackDetInputs, PackSegInputs).'
                )
            dataset, info = self._pictures.sample(path)
            annotated: Any = _map_in(sample, dataset, info) if self.segmentation else info
            record, detail = self._collector.record(sample, annotated)
            record |= {'path': path, 'detail': detail() if self._worst.wants(record['order']) else None}
            self._worst.keep(record)
            self._records.append(record)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        records = collect_results(self._records, len(runner.test_dataloader.dataset))
        if not is_main_process():
            return
        try:
            self._write(records, metrics or {})
            runner.logger.info(f'what went wrong: {self.out_file}')
        except OSError as error:  # the metrics of the test are worth more
            runner.logger.error(f'--report: {self.out_file} cannot be written ({in_words(error)}).')

    def _write(self, records: list[dict], metrics: dict[str, Any]) -> None:
        shown = chosen(records, self.most)
        above = common_folder([record['path'] for record in records])
        pictures = within([self._entry(record, above) for record in shown])
        content = self._collector.content(records) | {
            'datasets': [
                {
                    'name': '',
                    'number': len(records),
                    'classes': self._classes,
                    'colours': [css(colour) for colour in self._colours],
                }
            ],
            'pictures': pictures,
            'sorts': list(self._collector.sorts),
            'metrics': True,
            'note': (
                f'Numbers and tables are of all {len(records)} pictures. Below are {len(pictures)} of them: up to '
                f'{self.most} of the worst by each of {", ".join(self._collector.sorts)}.'
            ),
        }
        lines = (
            f'{name} {value:.4f}' if isinstance(value, Real) else f'{name} {value}' for name, value in metrics.items()
        )
        write_gallery(self.out_file, f'Test of {self.out_file.parent.name}', content, '\n'.join(lines))

    def _entry(self, record: dict, above: str) -> dict:
        """What the page knows of one picture; if it cannot be read, ``faults`` say why."""
        path = record['path']
        entry = {'d': 0, 'path': path, 'name': below(path, above), 'faults': [], 'order': record['order']}
        entry |= self._collector.entry(record)
        try:
            picture = self._pictures[path]
            entry |= {'w': picture.shape[1], 'h': picture.shape[0], 'src': jpeg(picture)}
        except Exception as error:  # of files, decoders and loading transforms
            entry['faults'].append(in_words(error))
        return entry


def _map_in(sample: Any, dataset: Any, info: dict) -> np.ndarray | None:
    """The annotated map of a sample: as the test's pipeline has loaded it, else as its data set would load it."""
    annotated = sample.get('gt_sem_seg')
    return map_of(dataset, info) if annotated is None else annotated.data.squeeze(0).cpu().numpy()


def report_mistakes(cfg: Config) -> None:
    """Make a test write ``report.html`` into its work dir.

    Raises:
        UserError: The page cannot show what the config predicts.
    """
    if cfg.get('default_scope') not in ('mmdet', 'mmseg'):
        raise UserError('--report needs a config with default_scope mmdet or mmseg.')
    masks = False
    for key, metric in each(cfg.get('test_evaluator'), 'test_evaluator'):
        if 'Panoptic' in str(metric.get('type')):
            raise UserError(f'--report: {key} is for panoptic maps, which the page does not compare.')
        masks = masks or 'segm' in (metric.get('metric') or ())
    score_thr = ((cfg.get('default_hooks') or {}).get('visualization') or {}).get('score_thr', 0.3)
    # That of an earlier test, in the config that it saved, has other settings.
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or () if hook.get('type') != 'swinv2_mm.MistakesHook']
    add_hook(
        cfg,
        'swinv2_mm.MistakesHook',
        out_file=str(Path(cfg.work_dir, 'report.html').absolute()),
        segmentation=cfg.default_scope == 'mmseg',
        masks=masks,
        score_thr=score_thr,
        bgr_to_rgb=swaps_channels(cfg),
    )
