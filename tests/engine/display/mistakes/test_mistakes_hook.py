"""The page of a test: all pictures are counted, the worst are shown, by one process or several."""

import json
import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData, PixelData
from support.tiny_data import noise, write_image

from swinv2_mm.engine.display.mistakes.hook import MistakesHook, report_mistakes
from swinv2_mm.engine.display.mistakes.worst import Worst, chosen
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
LOADING = {'type': 'mmcv.LoadImageFromFile'}


def listing(infos, classes=('a', 'b')):
    class Samples(BaseDataset):
        def load_data_list(self):
            return [dict(info) for info in infos]

    return Samples(metainfo={'classes': classes}, pipeline=[dict(LOADING)], serialize_data=False)


def runner_of(dataset, metrics=()):
    lines = []
    logger = SimpleNamespace(info=lines.append, error=lines.append)
    loader, evaluator = SimpleNamespace(dataset=dataset), SimpleNamespace(metrics=metrics)
    return SimpleNamespace(test_dataloader=loader, test_evaluator=evaluator, logger=logger, lines=lines)


def run(hook, dataset, samples, metrics=()):
    """Give samples to a hook, and read back the page."""
    runner = runner_of(dataset, metrics)
    hook.before_test(runner)
    for sample in samples:
        hook.after_test_iter(runner, batch_idx=0, data_batch=None, outputs=[sample])
    hook.after_test_epoch(runner, {'coco/bbox_mAP': 0.25})
    return page_in(hook.out_file) if hook.out_file.exists() else runner.lines


def page_in(path):
    return json.loads(re.search('type="application/json" id="data">(.*?)</script>', path.read_text())[1])


def detected(path, boxes=(), labels=(), scores=(), masks=None):
    from mmdet.structures import DetDataSample

    sample = DetDataSample(metainfo={'img_path': path, 'ori_shape': (64, 64)})
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    sample.pred_instances = InstanceData(bboxes=boxes, labels=torch.tensor(labels).long(), scores=torch.tensor(scores))
    if masks is not None:
        sample.pred_instances.masks = torch.from_numpy(masks)
    return sample


def instance(label, *corners, **keys):
    return {'bbox': list(corners), 'bbox_label': label, 'ignore_flag': 0, **keys}


def pictures(number, folder='in'):
    paths = [str(Path(folder, f'{index}.png').absolute()) for index in range(number)]
    for index, path in enumerate(paths):
        write_image(Path(path), noise(index))
    return paths


def five():
    """Five pictures, each with one object and something else in the place of it."""
    paths = pictures(5)
    dataset = listing([{'img_path': path, 'instances': [instance(0, 10, 10, 30, 30)]} for path in paths])
    samples = [
        detected(paths[0]),
        detected(paths[1], [[10, 10, 30, 30]], [1], [0.8]),
        detected(paths[2], [[10, 10, 30, 30], [10, 20, 30, 40], [40, 40, 60, 60]], [0, 0, 1], [0.9, 0.6, 0.5]),
        detected(paths[3], [[10, 10, 30, 31]], [0], [0.9]),
        detected(paths[4], [[11, 10, 30, 30], [10, 11, 30, 30]], [0, 0], [0.9, 0.29]),
    ]
    return dataset, samples


def test_mistakes_are_counted_and_the_worst_shown_first():
    """Bug: a picture without a mistake takes the place of one with some, or its objects are not counted."""
    page = run(MistakesHook('out/report.html'), *five())
    assert [each['name'] for each in page['pictures']] == ['2.png', '0.png', '1.png']
    assert {words: value for value, words, *_ in page['tiles']} == {
        'box AP': '0.604',  # 61 of 101 recalls
        'of 5 objects found': '60 %',
        'of 6 detections correct': '50 %',
        'missed': '1',
        'false': '1',
        'confused': '1',
        'poor overlap': '1',
        'double': '0',
    }
    assert [row[2] for row in page['matrix']['rows']] == [['3', '1', '1'], ['', '', ''], ['1', '1', '']]
    assert '3 of them' in page['note'] and 'all 5 pictures' in page['note']
    kinds = [sorted(each.get('k', '') for each in entry['objects']) for entry in page['pictures']]
    assert kinds == [['', 'correct', 'false', 'poor overlap'], ['missed'], ['confused', 'confused']]
    assert 'at least 0.3' in page['rule'] and 'by boxes' in page['rule']


def test_masks_are_compared_in_the_place_of_boxes():
    """Bug: a mask of half the object is called right, since its box is."""
    (path,) = pictures(1)
    square = [10, 10, 30, 10, 30, 30, 10, 30]
    dataset = listing([{'img_path': path, 'instances': [instance(0, 10, 10, 30, 30, mask=[square])]}])
    masks = np.zeros((1, 64, 64), bool)
    masks[0, 10:30, 10:15] = True
    sample = detected(path, [[10, 10, 30, 30]], [0], [0.9], masks)
    found = run(MistakesHook('a/report.html', masks=True), dataset, [sample])
    assert [tile[0] for tile in found['tiles'][:2]] == ['1.000', '0.000'] and 'by masks' in found['rule']
    (entry,) = found['pictures']
    assert [each['k'] for each in entry['objects']] == ['poor overlap'] * 2 and all(
        'p' in each for each in entry['objects']
    )
    assert run(MistakesHook('b/report.html'), dataset, [sample])['pictures'] == []


def segmented(path, annotated, predicted):
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo={'img_path': path, 'ori_shape': annotated.shape})
    sample.gt_sem_seg = PixelData(data=torch.from_numpy(annotated)[None])
    sample.pred_sem_seg = PixelData(data=torch.from_numpy(predicted)[None])
    return sample


def test_iou_is_that_of_mmsegmentation():
    """By class, over all pictures, without ignored pixels. Bug: the page and the metric of the run disagree."""
    from mmengine.logging import MMLogger
    from mmseg.evaluation import IoUMetric

    rng = np.random.default_rng(0)
    paths, samples = pictures(4), []
    for path in paths:
        annotated = rng.integers(0, 3, (64, 64))
        predicted = np.where(rng.random((64, 64)) < rng.random(), annotated, rng.integers(0, 3, (64, 64)))
        annotated[rng.random((64, 64)) < 0.1] = 255
        samples.append(segmented(path, annotated, predicted))
    metric = IoUMetric(iou_metrics=['mIoU', 'mFscore'])
    metric.dataset_meta = {'classes': ('a', 'b', 'c')}
    metric.process({}, [sample.to_dict() for sample in samples])
    MMLogger.get_instance('mistakes_of_maps', log_level='ERROR')
    theirs = metric.compute_metrics(metric.results)
    dataset = listing([{'img_path': path, 'seg_map_path': path} for path in paths], ('a', 'b', 'c'))
    page = run(MistakesHook('out/report.html', segmentation=True), dataset, samples, [metric])
    tiles = {words: float(value) for value, words, *_ in page['tiles']}
    assert tiles['mIoU, %'] == pytest.approx(theirs['mIoU'], abs=0.051)
    assert tiles['pixels right, %'] == pytest.approx(theirs['aAcc'], abs=0.051)
    each = metric.total_area_to_metrics(
        *(sum(values) for values in zip(*metric.results, strict=True)), ['mIoU', 'mFscore']
    )
    for name, *row in page['tables'][0]['rows']:
        label = 'abc'.index(name)
        expected = [float(each[key][label]) * 100 for key in ('IoU', 'Recall', 'Precision')]
        assert [float(value) for value in row[:3]] == pytest.approx(expected, abs=0.051)
    # Of a single picture, the same metric.
    for entry in page['pictures']:
        (own,) = (sample for sample in samples if sample.img_path == entry['path'])
        metric.results.clear()
        metric.process({}, [own.to_dict()])
        single = metric.compute_metrics(metric.results)
        assert 100 * (1 - entry['order']['lowest IoU']) == pytest.approx(single['mIoU'], abs=0.006)
        assert 100 * (1 - entry['order']['wrong pixels']) == pytest.approx(single['aAcc'], abs=0.006)
    assert [each['order']['lowest IoU'] for each in page['pictures']] == sorted(
        (each['order']['lowest IoU'] for each in page['pictures']), reverse=True
    )


def test_only_the_worst_pictures_keep_their_details():
    """Bug: a test of a hundred thousand pictures holds all their masks, and is killed for memory."""
    rng, worst, records = np.random.default_rng(0), Worst(5), []
    for index in range(500):
        order = {'all': float(rng.random()), 'some': float(rng.random() < 0.3) * index}
        record = {'order': order, 'detail': 'masks' if worst.wants(order) else None}
        worst.keep(record)
        records.append(record)
    expected = {
        index
        for name in ('all', 'some')
        for index in sorted(range(500), key=lambda index: -records[index]['order'][name])[:5]
    }
    assert {index for index, record in enumerate(records) if record['detail']} == expected
    best = chosen(records, 5)
    assert len(best) == len(expected) and best[0]['order']['all'] == max(each['order']['all'] for each in records)


def one_of_two(rank, folder, port):
    """The part of one process; both have the first picture, as the sampler fills up a last batch."""
    torch.distributed.init_process_group('gloo', f'tcp://127.0.0.1:{port}', world_size=2, rank=rank)
    os.chdir(folder)
    dataset, samples = five()
    run(MistakesHook('two/report.html'), dataset, [*samples, samples[0]][rank::2])
    torch.distributed.destroy_process_group()


def test_two_processes_write_the_page_of_one(tmp_path):
    """Bug: the page has half of the pictures, or counts those twice that fill up the last batch."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    one = run(MistakesHook('one/report.html'), *five())
    torch.multiprocessing.start_processes(one_of_two, (str(tmp_path), port), nprocs=2, start_method='fork')
    assert page_in(Path('two/report.html')) == one


def test_what_cannot_be_compared_is_said_before_the_test():
    """Bug: a test of hours ends without a page, or with one where everything is false."""
    path = pictures(1)
    with pytest.raises(UserError, match='test data have none'):
        MistakesHook('report.html').before_test(runner_of(listing([{'img_path': path[0], 'instances': []}])))
    with pytest.raises(UserError, match='img_path among the meta_keys'):
        run(MistakesHook('report.html'), five()[0], [detected(None)])
    with pytest.raises(UserError, match='default_scope'):
        report_mistakes(Config({'work_dir': 'work'}))
    evaluator = [{'type': 'CocoMetric', 'metric': 'bbox'}, {'type': 'CocoPanopticMetric'}]
    with pytest.raises(UserError, match=r'test_evaluator\.1 is for panoptic'):
        report_mistakes(Config({'default_scope': 'mmdet', 'work_dir': 'work', 'test_evaluator': evaluator}))


@pytest.mark.parametrize(
    ('metric', 'masks'), [('bbox', False), (['bbox', 'segm'], True), ('segm', True), (None, False)]
)
def test_masks_count_where_the_metric_of_the_run_counts_them(metric, masks):
    """Bug: a data set of boxes, tested with Mask R-CNN, has only mistakes; or settings of an earlier test stay."""
    cfg = Config(
        {'default_scope': 'mmdet', 'work_dir': 'work', 'test_evaluator': {'type': 'CocoMetric', 'metric': metric}}
    )
    cfg.custom_hooks = [{'type': 'swinv2_mm.MistakesHook', 'out_file': 'old'}]
    report_mistakes(cfg)
    (hook,) = cfg.custom_hooks
    assert hook['masks'] is masks and hook['out_file'] == str(Path('work/report.html').absolute())


def test_a_page_that_cannot_be_written_does_not_end_the_test():
    """Bug: hours of a test are lost, since the disk is full; or a picture that was deleted meanwhile ends it."""
    dataset, samples = five()
    Path('in/2.png').unlink()
    entry = run(MistakesHook('out/report.html'), dataset, samples)['pictures'][0]
    assert entry['name'] == '2.png' and 'src' not in entry and 'in/2.png' in entry['faults'][0]
    Path('file').write_text('')
    (line,) = run(MistakesHook('file/report.html'), dataset, samples)
    assert 'file/report.html cannot be written' in line
