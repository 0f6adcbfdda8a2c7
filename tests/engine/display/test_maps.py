"""Maps of a segmentor's test: one file per image, with the values that the metric writes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.structures import PixelData
from PIL import Image
from support.tiny_data import images

from swinv2_mm.engine.display.maps import MapNamesHook, name_maps

pytestmark = pytest.mark.usefixtures('own_process')


def iou(folder):
    from mmseg.evaluation import IoUMetric

    return IoUMetric(output_dir=folder)


def own(folder):
    from mmseg.evaluation import IoUMetric

    class OwnMetric(IoUMetric):
        """Compares each sample with its input."""

        def process(self, data_batch, data_samples):
            values = [int(sample['pred_sem_seg']['data'][0, 0, 0]) for sample in data_samples]
            assert [int(each.max()) for each in data_batch['inputs']] == values
            super().process(data_batch, data_samples)

    return OwnMetric(output_dir=folder)


def write_maps(metric, paths, batch_size=2, **keys):
    """Evaluate samples with map number i full of i; returns the written maps."""
    from mmseg.structures import SegDataSample

    metric.dataset_meta = {'classes': tuple('abcdef')}
    samples = []
    for index, path in enumerate(paths):
        whole = PixelData(data=torch.full((1, 4, 4), index))
        samples.append(SegDataSample(pred_sem_seg=whole, gt_sem_seg=whole, metainfo={'img_path': path, **keys}))
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=images(*paths)), test_evaluator=SimpleNamespace(metrics=[metric])
    )
    hook = MapNamesHook()
    hook.before_test(runner)
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        batch = {'inputs': [sample.pred_sem_seg.data for sample in part], 'data_samples': part}
        metric.process(batch, [sample.to_dict() for sample in part])
    hook.after_test(runner)
    assert 'process' not in vars(metric) and metric.output_dir == 'maps' and len(metric.results) == len(paths)
    return metric


def values(*names):
    return [np.unique(np.asarray(Image.open(f'maps/{name}'))).tolist() for name in names]


@pytest.mark.parametrize('kind', [iou, own])
@pytest.mark.parametrize('batch_size', [1, 2])
def test_every_image_has_its_map(kind, batch_size):
    """Bug: the maps of a/01.jpg and b/01.jpg, or x.jpg and x.png, are one file."""
    metric = write_maps(kind('maps'), ['/d/a/01.jpg', '/d/b/01.jpg', '/d/b/x.jpg', '/d/b/x.png'], batch_size)
    assert values('a/01.png', 'b/01.png', 'b/x.jpg.png', 'b/x.png') == [[0], [1], [2], [3]]
    assert metric.compute_metrics(metric.results)['mIoU'] == 100


def test_reduced_labels_are_counted_from_one_again():
    """Bug: maps for a benchmark's server, as ADE20K's, have labels that are one too small."""
    write_maps(iou('maps'), ['/d/1.jpg', '/d/2.jpg'], reduce_zero_label=True)
    assert values('1.png', '2.png') == [[1], [2]]


def test_other_metrics_keep_their_formats(monkeypatch):
    """Bug: Cityscapes' maps lose their label ids, or its evaluation does not find them."""
    from mmseg.evaluation.metrics import citys_metric

    labels = {index: SimpleNamespace(id=7 + index) for index in range(2)}
    monkeypatch.setattr(citys_metric, 'CSEval', object())  # of a package that few have
    monkeypatch.setattr(citys_metric, 'CSLabels', SimpleNamespace(trainId2label=labels), raising=False)
    metric = citys_metric.CityscapesMetric(output_dir='maps', format_only=True, keep_results=True)
    write_maps(metric, ['/d/ulm/1.png', '/d/bonn/1.png'], seg_map_path='')
    assert values('ulm/1.png', 'bonn/1.png') == [[7], [8]]
    assert [path.split('/')[-2:] for path, _ in metric.results] == [['ulm', '1.png'], ['bonn', '1.png']]


@pytest.mark.parametrize('metric', [{'type': 'IoUMetric', 'output_dir': 'maps'}, {'type': 'IoUMetric'}])
def test_only_runs_that_write_maps_name_them(metric):
    """Bug: a data set is walked through in every test."""
    for evaluator in metric, [metric], {'type': 'MultiDatasetsEvaluator', 'metrics': [metric]}:
        cfg = Config({'test_evaluator': evaluator})
        name_maps(cfg)
        assert bool(cfg.get('custom_hooks')) == ('output_dir' in metric)
