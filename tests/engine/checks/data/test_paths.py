"""What is missing is named before anything is written, with a remedy that works."""

import re
import shlex
from pathlib import Path

import pytest
from mmengine.config import Config
from support.tiny_fixtures import ROOT

from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.data.paths import check_data, check_folder, check_folders
from swinv2_mm.engine.config import apply_options, load_config
from swinv2_mm.engine.display.pictures import draw_predictions
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')


def missing(cfg, *splits):
    with pytest.raises(UserError) as error:
        check_data(Config(cfg), Context(splits))
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


def test_only_the_splits_that_the_run_reads_must_exist(tmp_path):
    """Bug: a test is refused because the training images are not on this machine."""
    here, gone = dict(dataset=leaf(str(tmp_path))), dict(dataset=leaf('gone'))
    cfg = Config(dict(train_dataloader=gone, val_dataloader=gone, test_dataloader=here))
    check_data(cfg, Context(('test',)))
    with pytest.raises(UserError):
        check_data(cfg, Context(('train', 'val')))


def test_remote_data_are_not_looked_for(tmp_path):
    """Bug: data in a storage service are reported as missing files."""
    for dataset in (leaf('s3://bucket/coco/', ann_file='a.json'), leaf('x', backend_args=dict(backend='petrel'))):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), Context(('train',)))


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
def test_the_suggested_options_find_the_data(config, laid_out, tmp_path):
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
    check_data(cfg, Context(('train', 'val')))


def test_missing_shapes_are_to_be_generated(tmp_path):
    cfg = load_config(ROOT / 'configs' / 'maskrcnn_swinv2_t_shapes.py')
    text = missing(cfg._cfg_dict, 'train', 'val')
    assert 'make data' in text and 'python tools/make_shapes.py data/shapes' in text and len(text) < 300


def test_a_file_in_the_way_of_the_work_dir_is_named():
    """Bug: FileExistsError from mkdir after the minute that loading took."""
    Path('file').touch()
    check_folder('new/dir', '--work-dir')
    with pytest.raises(UserError, match='file is a file'):
        check_folder('file/dir', '--work-dir')


@pytest.mark.parametrize('option', ['--out', '--show-dir'])
def test_the_folders_of_results_are_checked(option, tmp_path):
    """Bug: a test runs to its end, and all of its maps or pictures are lost, since their folder is a file."""
    (tmp_path / 'file').touch()
    cfg = Config({'work_dir': 'run', 'test_evaluator': {'type': 'IoUMetric'}, 'default_scope': 'mmseg'})
    if option == '--out':
        cfg.test_evaluator.output_dir = 'file'
    else:
        draw_predictions(cfg, show_dir='file')
    with pytest.raises(UserError, match=f'is a file.*{option}'):
        check_folders(cfg, Context(('test',)))
