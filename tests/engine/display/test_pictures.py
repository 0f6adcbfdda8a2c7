"""Pictures of a test: ground truth left, prediction right, in the folder that was named."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from support.tiny_data import images, write_image

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


def run_hook(hook, task, dataset, *paths):
    """Draw samples of these paths; returns the lines of the log."""
    visualizer, sample, score_thr = task()
    hook.options |= {} if score_thr is None else {'pred_score_thr': score_thr}
    visualizer.dataset_meta = {'classes': ('a', 'b'), 'palette': [(250, 0, 0), (0, 0, 250)]}
    lines = []
    runner = SimpleNamespace(visualizer=visualizer, logger=SimpleNamespace(warning=lines.append, error=lines.append))
    runner.test_dataloader = SimpleNamespace(dataset=dataset)
    hook.before_test(runner)
    for index, path in enumerate(paths):
        sample.set_metainfo({'img_path': path})
        hook.after_test_iter(runner, batch_idx=index, data_batch=None, outputs=[sample])
    hook.after_test(runner)
    return lines


@pytest.mark.parametrize('task', [detection, segmentation])
def test_draws_into_exactly_that_folder(task, tmp_path):
    """Bug: pictures end in work_dir/timestamp/… or vis_data/vis_image, every 50th is drawn, or b/0.jpg over a/0.jpg."""
    paths = [str(tmp_path / name) for name in ('a/0.jpg', 'a/1.jpg', 'b/0.jpg')]
    for path in paths:
        write_image(Path(path), np.full((32, 32, 3), 128, np.uint8))
    assert run_hook(PicturesHook(str(tmp_path / 'a folder')), task, images(*paths), *paths) == []
    drawn = [path.relative_to(tmp_path / 'a folder').as_posix() for path in (tmp_path / 'a folder').rglob('*.*')]
    assert sorted(drawn) == ['a/0.jpg', 'a/1.jpg', 'b/0.jpg']
    picture = cv2.imread(str(tmp_path / 'a folder' / 'a/0.jpg')).astype(int)
    truth, prediction = np.split(picture, 2, axis=1)
    assert truth.shape == (32, 32, 3) and np.abs(truth - prediction).max() > 50


@pytest.mark.parametrize('task', [detection, segmentation])
def test_a_picture_that_cannot_be_drawn_is_named(task, tmp_path):
    """Bug: a test of hours ends in the traceback of a picture, and its metrics are lost."""
    paths = [str(tmp_path / name) for name in ('0.png', '1.png', '2.png')]
    write_image(Path(paths[1]), np.full((32, 32, 3), 128, np.uint8))
    lines = run_hook(PicturesHook(str(tmp_path / 'out')), task, images(*paths), *paths)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['1.png']
    assert len(lines) == 2 and '0.png cannot be drawn' in lines[0] and lines[1].startswith('2 pictures')


@pytest.mark.parametrize('task', [detection, segmentation])
def test_a_window_shows_the_picture_and_nothing_is_stored(task, tmp_path):
    """Bug: --show also writes each picture into vis_data/vis_image, or its window has a picture that OpenCV turned."""
    path = str(tmp_path / '0.png')
    write_image(Path(path), np.full((32, 32, 3), 128, np.uint8))
    shown, stored = [], []

    def with_window():
        visualizer, *rest = task()
        visualizer.show = lambda image, win_name, wait_time: shown.append((image.shape, win_name, wait_time))
        backend = SimpleNamespace(add_image=lambda *_, **__: stored.append(1))
        visualizer._vis_backends = {'any': backend}
        return visualizer, *rest

    assert run_hook(PicturesHook(show=True, wait_time=1.5), with_window, images(path), path) == []
    assert (shown, stored) == ([((32, 64, 3), '0.png', 1.5)], [])


@pytest.mark.parametrize('task', [detection, segmentation])
def test_every_process_draws_its_images(task, tmp_path, monkeypatch):
    """Bug: of a test in two processes, half of the pictures are missing, since visualizers draw in the first alone."""
    monkeypatch.setattr('mmengine.dist.utils.get_rank', lambda group=None: 1)
    path = str(tmp_path / '0.png')
    write_image(Path(path), np.full((32, 32, 3), 128, np.uint8))
    dataset = images(path, metainfo={'classes': ('a', 'b'), 'palette': [(250, 0, 0), (0, 0, 250)]})
    assert run_hook(PicturesHook(str(tmp_path / 'out'), show=True), task, dataset, path) == []
    assert cv2.imread(str(tmp_path / 'out/0.png')).shape == (32, 64, 3)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_one_hook_for_folder_and_window(scope):
    """Bug: the hook of an earlier test, in the config that it saved, draws into its own folder instead."""
    cfg = Config({'default_scope': scope, 'model': {'data_preprocessor': {'bgr_to_rgb': True}}})
    for show_dir in ('before', 'now'):
        draw_predictions(cfg, show=True, show_dir=show_dir, wait_time=1.5)
    (hook,) = cfg.custom_hooks
    assert (hook.type, hook.show, hook.wait_time, hook.bgr_to_rgb) == ('swinv2_mm.PicturesHook', True, 1.5, True)
    assert hook.out_dir == str(Path('now').absolute()) and hook.score_thr == {'mmdet': 0.3, 'mmseg': None}[scope]


def test_nothing_is_drawn_unasked():
    cfg = Config({'default_scope': 'mmdet'})
    draw_predictions(cfg)
    assert cfg.to_dict() == {'default_scope': 'mmdet'}
