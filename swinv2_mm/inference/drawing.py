"""Draw what was found on a picture, by the framework's visualizer."""

from functools import partial
from typing import Any

import numpy as np
import torch

from swinv2_mm.engine.display.fonts import label_areas, use_fonts_for, without_drawing_warnings
from swinv2_mm.engine.mmengine_internals import only_drawing, set_label_drawing
from swinv2_mm.errors import say
from swinv2_mm.inference.found import Found, decode
from swinv2_mm.inference.model import Model

# Larger pictures are drawn at this size of their longer side: matplotlib needs 60 bytes for each pixel.
LONGEST = 4096


class Drawer:
    """Draws on pictures what a model found.

    Args:
        model: Whose classes and colours are used.
    """

    def __init__(self, model: Model):
        with model.in_scope():
            if model.scope == 'mmseg':
                from mmseg.visualization import SegLocalVisualizer as Visualizer
            else:
                from mmdet.visualization import DetLocalVisualizer as Visualizer
            self._visualizer = Visualizer(alpha=0.5)
        self._visualizer.dataset_meta = {'classes': model.classes, 'palette': model.palette}
        warning = use_fonts_for(self._visualizer, model.classes)
        if warning:
            say(f'warning: {warning}')
        set_label_drawing(self._visualizer, partial(label_areas, self._visualizer))
        self._task = model.task

    def __call__(self, image: np.ndarray, found: Found) -> np.ndarray:
        """Draw on a picture, RGB, uint8, ``(H, W, 3)``; returns another one, which is not larger than LONGEST."""
        import cv2

        scale = min(1.0, LONGEST / max(image.shape[:2]))
        if scale < 1:
            size = tuple(max(1, round(side * scale)) for side in image.shape[1::-1])
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        sample = self._sample(found, scale, image.shape[:2])
        if sample is None:
            return image
        with only_drawing(self._visualizer), without_drawing_warnings():
            arguments = {} if self._task == 'semantic' else {'pred_score_thr': -1.0}
            self._visualizer.add_datasample('picture', image, sample, draw_gt=False, **arguments)
            return np.ascontiguousarray(self._visualizer.get_image())

    def _sample(self, found: Found, scale: float, size: tuple[int, int]) -> Any:
        """The data sample that a visualizer draws; None if there is nothing to draw."""
        from mmengine.structures import InstanceData, PixelData

        if self._task == 'semantic':
            from mmseg.structures import SegDataSample

            # As an array: with a tensor the visualizer fails at a single row.
            return SegDataSample(pred_sem_seg=PixelData(data=_resized(found.map, size).astype(np.int64)[None]))
        from mmdet.structures import DetDataSample

        if not len(found.boxes):
            return None
        masks = None if found.masks is None else [_resized(decode(mask), size) for mask in found.masks]
        if self._task == 'panoptic':
            from mmdet.evaluation import INSTANCE_OFFSET

            ids = np.full(size, len(self._visualizer.dataset_meta['classes']), np.int64)
            for number, (mask, label) in enumerate(zip(masks, found.labels, strict=True), 1):
                ids[mask] = label + INSTANCE_OFFSET * number
            return DetDataSample(pred_panoptic_seg=PixelData(sem_seg=ids[None]))
        instances = InstanceData(
            bboxes=torch.from_numpy(found.boxes * scale),
            labels=torch.from_numpy(found.labels),
            scores=torch.from_numpy(found.scores),
        )
        if masks is not None:
            instances.masks = torch.from_numpy(np.stack(masks))
        return DetDataSample(pred_instances=instances)


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The nearest values of a map in another size, ``(height, width)``."""
    if values.shape == size:
        return values
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=True))
    return values[rows[:, None], columns]
