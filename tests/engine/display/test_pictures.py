"""Pictures of a test: ground truth left, prediction right, in the folder that was named."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

from swinv2_mm.engine.display.pictures import PicturesHook, draw_predictions

pytestmark = pytest.mark.usefixtures('own_process')


def detection():
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer

    sample = DetDataSample()
    boxes = torch.tensor([[4.0, 4.0, 20.0, 20.0]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0]))
    sample.pred_instances = InstanceData(bboxes=boxes[:0], labels=torch.zeros(0).long(), scores=torch.zeros(0))
    return DetLocalVisualizer('pictures_det'), sample, 0.3


def segmentation():
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    sample = SegDataSample()
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 32, 32).long())
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 32, 32).long())
    return SegLocalVisualizer('pictures_seg'), sample, None


@pytest.mark.parametrize('task', [detection, segmentation])
def test_draws_into_exactly_that_folder(task, tmp_path):
    """Bug: pictures end in work_dir/timestamp/…, in vis_data/vis_image, or every 50th is drawn."""
    visualizer, sample, score_thr = task()
    visualizer.dataset_meta = {'classes': ('a', 'b'), 'palette': [(250, 0, 0), (0, 0, 250)]}
    runner = SimpleNamespace(visualizer=visualizer)
    hook = PicturesHook(str(tmp_path / 'a folder'), score_thr)
    for index in range(3):
        cv2.imwrite(str(tmp_path / f'{index}.jpg'), np.full((32, 32, 3), 128, np.uint8))
        sample.set_metainfo({'img_path': str(tmp_path / f'{index}.jpg')})
        hook.after_test_iter(runner, batch_idx=index, data_batch=None, outputs=[sample])
    assert sorted(path.name for path in (tmp_path / 'a folder').rglob('*')) == ['0.jpg', '1.jpg', '2.jpg']
    picture = cv2.imread(str(tmp_path / 'a folder' / '0.jpg')).astype(int)
    truth, prediction = np.split(picture, 2, axis=1)
    assert truth.shape == (32, 32, 3) and np.abs(truth - prediction).max() > 50


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_a_window_for_every_image(scope):
    cfg = Config({'default_scope': scope})
    draw_predictions(cfg, show=True, wait_time=1.5)
    hook = cfg.default_hooks.visualization
    assert (hook.draw, hook.show, hook.interval, hook.wait_time) == (True, True, 1, 1.5)
    assert hook.type == {'mmdet': 'DetVisualizationHook', 'mmseg': 'SegVisualizationHook'}[scope]


def test_nothing_is_drawn_unasked():
    cfg = Config({'default_scope': 'mmdet'})
    draw_predictions(cfg)
    assert cfg.to_dict() == {'default_scope': 'mmdet'}
