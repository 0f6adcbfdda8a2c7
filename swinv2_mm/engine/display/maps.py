"""Predicted maps of a test, which metrics write: in the sub-folders of the data set, and none over another one."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from swinv2_mm.engine.config import add_hook
from swinv2_mm.engine.config.parts import nested
from swinv2_mm.engine.display.loading import Pictures, path_in
from swinv2_mm.engine.display.names import OutputNames
from swinv2_mm.registry import HOOKS


@HOOKS.register_module()
class MapNamesHook(Hook):
    """Give each map that a metric writes below its ``output_dir`` a path of its own, see :class:`OutputNames`.

    Metrics name a map after its image, without the folder: those of ``a/01.png`` and ``b/01.png`` would be one file.
    What a map holds remains the business of its metric. All processes of a test give the same names.
    """

    def before_test(self, runner: Runner) -> None:
        names = OutputNames(Pictures(runner.test_dataloader.dataset).paths, maps=True)
        for metric in runner.test_evaluator.metrics:
            if isinstance(getattr(metric, 'output_dir', None), str):
                metric.process = _named(metric, metric.process, names)

    def after_test(self, runner: Runner) -> None:
        for metric in runner.test_evaluator.metrics:
            vars(metric).pop('process', None)  # a metric that refers to itself would be deleted later


def _named(metric: Any, process: Callable, names: OutputNames) -> Callable:
    """Call ``process`` for one sample after the other, with the folder of its map as the metric's ``output_dir``."""

    def process_named(data_batch: Any, data_samples: Sequence[Any]) -> None:
        folder = metric.output_dir
        try:
            for index, sample in enumerate(data_samples):
                if path := path_in(sample) if isinstance(sample, dict) else None:
                    file = Path(folder, names[path])
                    file.parent.mkdir(parents=True, exist_ok=True)
                    metric.output_dir = str(file.parent)
                    if os.path.splitext(os.path.basename(path))[0] != file.stem:
                        sample = dict(sample, img_path=str(file))  # which the metric takes the name from
                process(_one_of(data_batch, index, len(data_samples)), [sample])
                metric.output_dir = folder
        finally:
            metric.output_dir = folder

    return process_named


def _one_of(batch: Any, index: int, size: int) -> Any:
    """One sample of a batch that was collated as a dict of lists."""
    if not isinstance(batch, dict):
        return batch
    return {
        key: value[index : index + 1] if isinstance(value, list | tuple) and len(value) == size else value
        for key, value in batch.items()
    }


def name_maps(cfg: Config) -> None:
    """Add :class:`MapNamesHook` to a test in which a metric writes maps."""
    parts = [part for _, part in nested(cfg.get('test_evaluator'), '')]
    if any(isinstance(part, dict) and part.get('output_dir') for part in parts):
        add_hook(cfg, 'swinv2_mm.MapNamesHook')
