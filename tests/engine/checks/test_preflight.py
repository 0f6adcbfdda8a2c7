"""What is missing is named before anything is written, with a remedy that works."""

import math
import re
import shlex
from pathlib import Path

import pytest
from mmengine.config import Config
from support.tiny_fixtures import ROOT

from swinv2_mm.engine.checks.dry_run import rehearse
from swinv2_mm.engine.checks.preflight import check_data, check_numbers, check_work_dir
from swinv2_mm.engine.config import apply_options, load_config
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')


def missing(cfg, *splits):
    with pytest.raises(UserError) as error:
        check_data(Config(cfg), splits)
    return str(error.value)


def leaf(root='', **arguments):
    return dict(type='SomeDataset', data_root=root, **arguments)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
        lambda dataset: dict(type='ConcatDataset', datasets=[leaf(), dataset]),
        lambda dataset: dict(type='ClassBalancedDataset', dataset=dict(type='ConcatDataset', datasets=[dataset])),
    ],
    ids=['repeat', 'concat', 'balanced concat'],
)
def test_looks_into_wrapped_data_sets(wrap, tmp_path):
    """Bug: only the outermost data set is checked, and a wrapped one fails after the work dir was made."""
    (tmp_path / 'images').mkdir()
    dataset = leaf(str(tmp_path), ann_file='gone.json', data_prefix=dict(img='images/', seg='gone/'))
    text = missing(dict(train_dataloader=dict(dataset=wrap(dataset))), 'train')
    assert f'{tmp_path}/gone.json' in text and f'{tmp_path}/gone' in text and f'{tmp_path}/images' not in text
    assert re.search(r'--cfg-options train_dataloader\.dataset\.(dataset|datasets)\S*\.ann_file=', text)


def test_asks_only_for_what_the_run_reads(tmp_path):
    """Bug: a test is refused because the training images are not on this machine."""
    here, gone = dict(dataset=leaf(str(tmp_path))), dict(dataset=leaf('gone'))
    cfg = Config(dict(train_dataloader=gone, val_dataloader=gone, test_dataloader=here))
    check_data(cfg, ('test',))
    with pytest.raises(UserError):
        check_data(cfg, ('train', 'val'))


def test_leaves_remote_data_alone(tmp_path):
    """Bug: data in a storage service are reported as missing files."""
    for dataset in (leaf('s3://bucket/coco/', ann_file='a.json'), leaf('x', backend_args=dict(backend='petrel'))):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))


@pytest.mark.parametrize(
    ('config', 'laid_out'),
    [
        ('maskrcnn_swinv2_t', ['train2017', 'val2017', 'annotations/instances_{train,val}2017.json']),
        (
            'upernet_swinv2_t',
            [f'{kind}/{split}' for kind in ('images', 'annotations') for split in ('training', 'validation')],
        ),
    ],
)
def test_the_remedy_is_right(config, laid_out, tmp_path):
    """Bug: CocoMetric keeps the old path of the annotations when only the data set is told of the new one."""
    cfg = load_config(ROOT / 'configs' / f'{config}.py')
    text = missing(cfg._cfg_dict, 'train', 'val')
    assert all(part.split('/')[0] in text for part in laid_out)
    for part in laid_out:
        for path in [part] if '{' not in part else [part.replace('{train,val}', split) for split in ('train', 'val')]:
            path = tmp_path / 'it' / path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir()
    options = dict(option.split('=') for option in shlex.split(text.partition('--cfg-options ')[2]))
    options = {key: value.replace('/path/to', str(tmp_path)) for key, value in options.items()}
    apply_options(cfg, options, config)
    assert Path(cfg.val_evaluator.get('ann_file', '.')).exists()
    check_data(cfg, ('train', 'val'))


def test_shapes_are_generated_not_downloaded(tmp_path):
    cfg = load_config(ROOT / 'configs' / 'maskrcnn_swinv2_t_shapes.py')
    text = missing(cfg._cfg_dict, 'train', 'val')
    assert 'make data' in text and 'python tools/make_shapes.py data/shapes' in text and len(text) < 300


def test_a_file_in_the_way_of_the_work_dir():
    """Bug: FileExistsError from mkdir after the minute that loading took."""
    Path('file').touch()
    check_work_dir('new/dir')
    with pytest.raises(UserError, match='file is a file'):
        check_work_dir('file/dir')


def test_an_infinite_norm_is_no_mistake():
    """Bug: max_norm=inf, by which the norm of the gradients is logged and nothing clipped, is refused."""
    check_numbers(Config(dict(optim_wrapper=dict(clip_grad=dict(max_norm=math.inf)))))
    with pytest.raises(UserError, match='max_norm=nan'):
        check_numbers(Config(dict(optim_wrapper=dict(clip_grad=dict(max_norm=math.nan)))))


def test_things_and_stuff_are_counted_by_their_own_heads():
    """Bug: the 80 classes of a panoptic model's boxes are held against the 133 of its data set, and it cannot train."""
    Path('panoptic.py').write_text("_base_ = 'mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py'")
    cfg = load_config('panoptic.py')
    cfg.train_dataloader.dataset.pipeline = []  # which would want panopticapi
    model = rehearse(cfg, ('train',))
    assert model.roi_head.bbox_head.num_classes == 80
