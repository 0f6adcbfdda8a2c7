"""Damaged data stop a run by the name of the file, or are skipped; what is evaluated is never skipped."""

import json
import re
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, MODELS, init_default_scope
from support.damaged_training import EXTRA
from support.empty_samples import empty_sample
from support.resuming import RUNS, end_workers, same
from support.tiny_fixtures import ROOT
from support.tiny_training import write_config
from torch.utils.data import DataLoader

from swinv2_mm.datasets import ShapesSpec, write_shapes
from swinv2_mm.engine.diagnosis.corrupt_data import DamagedSample, check_end, check_samples, named_annotations
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
CONFIGS = {'mmdet': 'maskrcnn_swinv2_t_shapes.py', 'mmseg': 'upernet_swinv2_t_shapes.py'}
IMAGE, MAP = 'images/{}/000000.png', 'annotations/{}/000000.png'


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A small set of shapes, to be copied and damaged."""
    folder = tmp_path_factory.mktemp('whole') / 'shapes'
    write_shapes(ShapesSpec(size=64, num_train=6, num_val=3), folder)
    return folder


@pytest.fixture
def shapes(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'data' / 'shapes')


@cache
def config_of(scope):
    return Config.fromfile(ROOT / 'configs' / CONFIGS[scope])


def load(scope, split='train', **options):
    """The data set of a scope's shapes, with its checks."""
    init_default_scope(scope)
    cfg = deepcopy(config_of(scope))
    # In front of packing its list, mmengine collects garbage, which takes most of the time here.
    cfg.merge_from_dict({f'{split}_dataloader.dataset.serialize_data': False} | options)
    check_samples(cfg, (split,))
    with named_annotations():
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def first_objects(shapes, split, **values):
    path = shapes / 'annotations' / f'instances_{split}.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        if annotation['image_id'] == content['images'][0]['id']:
            annotation.update(values)
    path.write_text(json.dumps(content))


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def save(path, array):
    assert cv2.imwrite(str(path), array)


def truncated_jpeg(path):
    path.write_bytes(cv2.imencode('.jpg', cv2.imread(str(path)))[1].tobytes()[:-200])


def sizes(shapes, split):
    path = shapes / 'annotations' / f'instances_{split}.json'
    content = json.loads(path.read_text())
    content['images'][0].update(width=48)
    path.write_text(json.dumps(content))


RLE = {'size': [64, 64], 'counts': [0, 64 * 64]}
# What is damaged, in which framework's data -> how, and what is said of it.
DAMAGE = {
    ('mmdet', 'truncated'): (lambda d, s: rewrite(d / IMAGE.format(s), lambda b: b[:300]), 'incomplete'),
    ('mmdet', 'truncated jpeg'): (lambda d, s: truncated_jpeg(d / IMAGE.format(s)), 'incomplete|truncated'),
    ('mmdet', 'empty'): (lambda d, s: rewrite(d / IMAGE.format(s), lambda b: b''), 'empty'),
    ('mmdet', 'text'): (lambda d, s: rewrite(d / IMAGE.format(s), lambda b: b'<html>'), 'no image'),
    ('mmdet', 'missing'): (lambda d, s: (d / IMAGE.format(s)).unlink(), 'no such file'),
    ('mmdet', 'another size'): (sizes, '64 x 64 pixels, its annotations are for 48 x 64'),
    ('mmdet', 'no mask'): (lambda d, s: first_objects(d, s, segmentation=None), 'mask of object 1 is missing'),
    ('mmdet', 'mask is text'): (lambda d, s: first_objects(d, s, segmentation='x'), 'is a str'),
    ('mmdet', 'polygon of NaN'): (lambda d, s: first_objects(d, s, segmentation=[[float('nan')] * 6]), 'not a finite'),
    ('mmdet', 'RLE for another image'): (
        lambda d, s: first_objects(d, s, segmentation=RLE | {'size': [128, 32]}),
        'for 32 x 128 pixels',
    ),
    ('mmdet', 'short RLE'): (lambda d, s: first_objects(d, s, segmentation=RLE | {'counts': [5, 9]}), 'add up to 14'),
    ('mmdet', 'garbage RLE'): (lambda d, s: first_objects(d, s, segmentation=RLE | {'counts': '@@!garbage'}), 'RLE'),
    ('mmseg', 'no map'): (lambda d, s: (d / MAP.format(s)).unlink(), 'no such file'),
    ('mmseg', 'truncated map'): (lambda d, s: rewrite(d / MAP.format(s), lambda b: b[:60]), 'truncated'),
    ('mmseg', 'small map'): (lambda d, s: save(d / MAP.format(s), np.ones((32, 48), np.uint8)), '48 x 32'),
    ('mmseg', 'coloured map'): (lambda d, s: save(d / MAP.format(s), np.ones((64, 64, 3), np.uint8)), '64 x 64 x 3'),
    ('mmseg', 'unknown label'): (
        lambda d, s: save(d / MAP.format(s), np.full((64, 64), 5, np.uint8)),
        'labels from 4 to 4.*4 classes',
    ),
}


@pytest.mark.parametrize(('scope', 'damage'), DAMAGE)
def test_a_corrupt_sample_is_reported_by_its_file(scope, damage, shapes):
    """Bug: a traceback from a data worker, a label that kills the device, or a wrong mask and no word."""
    hurt, said = DAMAGE[scope, damage]
    hurt(shapes, 'training')
    with pytest.raises(DamagedSample, match=said) as error:
        load(scope)[0]
    assert 'training/000000.png' in str(error.value) and '\n' not in str(error.value)
    dataset = load(scope, bad_data='skip')
    assert not dataset[0]['data_samples'].img_path.endswith('000000.png')
    assert dataset[1]['data_samples'].img_path.endswith('000001.png')


def test_a_jpeg_goes_on_to_its_end(tmp_path):
    """Bug: OpenCV 4.10 fills the rest of a truncated file with grey; or a camera's trailing bytes are damage."""
    whole = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    path = tmp_path / 'image.jpg'
    for content in (whole, whole + b'trailing'):
        path.write_bytes(content)
        check_end(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(OSError, match='truncated'):
        check_end(path)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_never_skips_what_is_evaluated(scope, shapes):
    """Bug: a metric over the images that could be read, higher or lower than it is."""
    (shapes / IMAGE.format('validation')).unlink()
    if scope == 'mmseg':  # which lists the images that it finds
        save(shapes / IMAGE.format('validation'), np.ones((32, 32, 3), np.uint8))
    for split in ('val', 'test'):
        with pytest.raises(DamagedSample, match=r'validation/000000.png'):
            load(scope, split, bad_data='skip')[0]


def test_a_data_worker_says_it_in_one_paragraph(shapes):
    """Bug: torch raises the exception of a worker again with the whole traceback as its message."""
    (shapes / IMAGE.format('training')).unlink()
    with pytest.raises(DamagedSample, match=r'^data/shapes/images/training/000000.png cannot be used: there is no'):
        list(DataLoader(load('mmdet'), num_workers=1, collate_fn=pseudo_collate))


def test_logs_each_file_once(shapes, tmp_path):
    """Bug: a warning per epoch and worker for one file, or one for all files."""
    MMLogger.get_instance('test_bad_data', log_file=str(tmp_path / 'log.txt'))
    for number in (0, 3):
        (shapes / f'images/training/00000{number}.png').write_bytes(b'')
    dataset = load('mmdet', bad_data='skip')
    for _ in range(3):  # epochs, each with workers of its own
        assert len(list(DataLoader(dataset, num_workers=2, collate_fn=pseudo_collate))) == len(dataset)
    said = re.findall(r'(\d{6}).png cannot be used.*; (\d) so far', (tmp_path / 'log.txt').read_text())
    # Two workers may find their files at the same time, and then both count two.
    assert sorted(file for file, _ in said) == ['000000', '000003'] and max(count for _, count in said) == '2'


def test_a_vanished_data_set_stops_the_run(shapes):
    """Bug: with a disk that vanished, training looks for another sample for ever."""
    for path in (shapes / 'images' / 'training').iterdir():
        path.unlink()
    with pytest.raises(Exception, match='Cannot find valid image'):  # mmengine's
        load('mmdet', bad_data='skip')[0]


@pytest.mark.parametrize(
    'values',
    [
        {'bbox': [3, 3, 1, 1], 'area': 1},
        {'bbox': [3, 3, 0, 0]},
        {'area': 0},
        {'bbox': [200, 3, 9, 9]},
        {'bbox': [-5, -5, 40, 90]},
        {'segmentation': [[1, 1, 9, 9]]},
    ],
)
def test_leaves_to_mmdet_what_it_leaves_out(values, shapes):
    """Bug: COCO's own oddities stop a run that MMDetection can do."""
    first_objects(shapes, 'training', **values)
    assert load('mmdet')[0]['data_samples'].img_path.endswith('000000.png')


def test_an_empty_list_of_images_is_named(shapes):
    """Bug: ValueError: need at least one array to concatenate."""
    path = shapes / 'annotations' / 'instances_training.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {'annotations': []}))
    assert len(load('mmdet')) == 6
    with pytest.raises(UserError, match=r'instances_training.json gives not a single image.*filter_empty_gt'):
        load('mmdet', **{'train_dataloader.dataset': {'filter_cfg': {'filter_empty_gt': True}, 'serialize_data': True}})
    path.write_text('')
    with pytest.raises(UserError, match=r'instances_training.json cannot be read'):
        load('mmdet')


def test_another_mistake_in_a_data_set_is_passed_on(shapes):
    """Bug: annotations are blamed for the ValueError of a transform."""
    with pytest.raises(ValueError, match='probs must be'):
        load('mmdet', **{'train_dataloader.dataset.pipeline': [dict(type='RandomFlip', prob='x')]})


def test_loading_alone_is_wrapped_and_a_policy_is_one_of_two():
    """Bug: other transforms are taken for loading, or a misspelt policy for the default."""
    cfg = deepcopy(config_of('mmdet'))
    before = cfg.train_dataloader.dataset.to_dict()
    check_samples(cfg, ('train',))
    after = cfg.train_dataloader.dataset.to_dict()
    assert [step.get('on_damage') for step in after['pipeline']] == ['stop', 'stop', None, None]
    assert [step.get('loading', step) for step in after['pipeline']] == before['pipeline']
    cfg.bad_data = 'ignore'
    with pytest.raises(UserError, match="'skip'"):
        check_samples(cfg, ('train',))


@pytest.mark.parametrize('run', ['workers', 'iterations'])
def test_resuming_skips_in_the_same_way(run, tmp_path):
    """Bug: what takes the place of a damaged sample depends on how training got there."""
    settings = RUNS[run]
    first = 'epoch_1.pth' if settings.get('by_epoch', True) else 'iter_3.pth'
    config = write_config(tmp_path, 'damaged.py', EXTRA + "bad_data = 'skip'\n", **settings)
    weights = []
    for folder, resume in (('straight', None), ('resumed', f'straight/{first}')):
        runner = train(prepare_training(config, work_dir=folder, resume=resume))
        end_workers(runner)
        weights.append(runner.model.state_dict())
    assert same(*weights)
    # Inference by the frameworks looks for their own loading in the config that a run has saved.
    saved = Path('straight/damaged.py').read_text()
    assert 'LoadNoise' in saved and 'CheckedLoading' not in saved


@pytest.mark.parametrize('workers', [0, 1])
def test_training_stops_in_one_paragraph(workers, tmp_path, run_tool, capsys):
    """Bug: the traceback of a data worker on the screen, with the name of the file in the middle or not at all."""
    config = write_config(tmp_path, 'damaged.py', EXTRA, num_workers=workers)
    assert run_tool('train', config) == 2
    said = capsys.readouterr().err
    error = said[said.index('error: ') :]
    assert len(error.strip().splitlines()) == 1
    assert re.search(r'^error: [25]\.png cannot be used: OSError: .*bad_data=skip', error)


NARROW = {
    'model.backbone.depths': [1, 1, 1, 1],
    'model.backbone.embed_dims': 24,
    'model.backbone.num_heads': [1, 1, 2, 2],
}
WIDTHS = [24, 48, 96, 192]


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_a_batch_without_objects_has_a_finite_loss(scope):
    """Bug: a mean over no object, or over no pixel that counts, is NaN."""
    init_default_scope(scope)
    cfg = deepcopy(config_of(scope))
    cfg.merge_from_dict(
        NARROW
        | (
            {'model.neck.in_channels': WIDTHS}
            if scope == 'mmdet'
            else {
                'model.decode_head.in_channels': WIDTHS,
                'model.auxiliary_head.in_channels': WIDTHS[2],
                'model.data_preprocessor.size': (64, 64),
            }
        )
    )
    for head in (cfg.model.get('decode_head'), cfg.model.get('auxiliary_head')):
        if head:
            head.loss_decode.class_weight = None  # mmseg 1.2.2 looks up the weight of the ignored label, too, and fails
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    data = model.data_preprocessor(
        {
            'inputs': [torch.randint(255, (3, 64, 64)).byte()] * 2,
            'data_samples': [empty_sample(scope) for _ in range(2)],
        },
        True,
    )
    loss, terms = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    assert all(value.isfinite() for value in terms.values())
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
