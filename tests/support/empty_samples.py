"""Samples without objects, of mmdet and of mmseg."""

import numpy as np
import torch
from mmengine.structures import InstanceData, PixelData


def empty_sample(scope: str):
    """Make a sample of 64 x 64 pixels whose annotations hold nothing."""
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample

        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 64, 64), 255)))
    else:
        from mmdet.structures import DetDataSample
        from mmdet.structures.bbox import HorizontalBoxes
        from mmdet.structures.mask import BitmapMasks

        objects = InstanceData(
            bboxes=HorizontalBoxes(torch.zeros(0, 4)),
            labels=torch.zeros(0, dtype=torch.long),
            masks=BitmapMasks(np.zeros((0, 64, 64), np.uint8), 64, 64),
        )
        sample = DetDataSample(gt_instances=objects, ignored_instances=objects[:0].clone())
    sample.set_metainfo({'img_shape': (64, 64), 'ori_shape': (64, 64), 'pad_shape': (64, 64), 'scale_factor': (1, 1)})
    return sample
