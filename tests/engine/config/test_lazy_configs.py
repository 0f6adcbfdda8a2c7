"""Pure-Python configs, which import what they build, train, test and resume as others do, and mistakes have keys."""

import re
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from support import run_process
from support.lazy_configs import TINY, framework_config, write
from support.tiny_training import write_config

from swinv2_mm.datasets import ShapesSpec, write_shapes
from swinv2_mm.engine.config import load_config
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes')
    write_shapes(ShapesSpec(size=64, num_train=4, num_val=2), folder)
    return folder


def saved(checkpoint):
    return torch.load(checkpoint, weights_only=True)


def check_saved(checkpoint, file):
    """The config beside a checkpoint and the one in it read back, to the same, and need no more than text."""
    cfg, text = Config.fromfile(file), saved(checkpoint)['meta']['cfg']
    assert cfg.to_dict() == Config.fromstring(text, '.py').to_dict() == load_config(file).to_dict()
    assert '<' not in text and '_delete_' not in text
    return cfg


def test_a_lazy_config_trains_and_resumes_to_the_weights_of_the_same_text_config(run_tool, tmp_path):
    """Bugs: the config could not be saved with the run; a run by classes, or its resumption, had other settings."""
    lazy, text = write(TINY), write_config(tmp_path)
    assert run_tool('train', lazy, '--work-dir', 'lazy') == 0
    assert run_tool('train', lazy, '--work-dir', 'resumed', '--resume', 'lazy/epoch_1.pth') == 0
    assert run_tool('train', text, '--work-dir', 'text') == 0
    lazy, resumed, text = (saved(f'{folder}/epoch_3.pth')['state_dict'] for folder in ('lazy', 'resumed', 'text'))
    for key in text:
        assert torch.equal(lazy[key], text[key]) and torch.equal(resumed[key], text[key])
    cfg = check_saved('lazy/epoch_3.pth', 'lazy/lazy.py')
    assert cfg.default_hooks.checkpoint.type == 'swinv2_mm.CheckpointHook'
    assert not {'os', 'loader', 'AdamW'} & cfg.keys()


def test_the_saved_config_is_one_to_go_on_with(run_tool):
    """Bug: what a run had saved as its config could not be tested with, or trained from, or drew a report again."""
    assert run_tool('train', write(TINY), '--work-dir', 'run', '--cfg-options', 'train_cfg.max_epochs=1') == 0
    for config in ('lazy.py', 'run/lazy.py'):
        options = ['--work-dir', 'test', '--cfg-options', 'test_dataloader.batch_size=2']
        assert run_tool('test', config, 'run/epoch_1.pth', *options) == 0
    options = ['--cfg-options', 'train_cfg.max_epochs=2']
    assert run_tool('train', 'run/lazy.py', '--work-dir', 'run', '--resume', *options) == 0
    assert not Path('run/report.png').exists()


def test_a_lazy_detector_does_all_that_one_of_text_does(run_tool, shapes):
    """Bug: `Failed to format the config file`, or hooks, precision and pictures that do not know a class as a type."""
    config = framework_config('detector', shapes)
    assert run_tool('train', config, '--work-dir', 'run', '--amp') == 0
    cfg = check_saved('run/epoch_1.pth', 'run/lazy.py')
    assert (cfg.default_scope, cfg.model.type) == ('mmdet', 'MaskRCNN')
    assert cfg.model.backbone.type == 'swinv2_mm.SwinTransformerV2'
    assert cfg.optim_wrapper.type == 'swinv2_mm.AmpOptimWrapper'
    options = ['--work-dir', 'test', '--show-dir', 'pictures', '--cfg-options', 'test_dataloader.batch_size=1']
    assert run_tool('test', config, 'run/epoch_1.pth', *options) == 0
    assert len([*Path('pictures').glob('*.png')]) == 2
    options = ['--resume', '--cfg-options', 'train_cfg.max_epochs=2']
    assert run_tool('train', config, '--work-dir', 'run', '--amp', *options) == 0
    # A process that imports nothing of ours: names and paths have to be enough.
    code = (
        'import sys\nfrom mmdet.apis import inference_detector, init_detector\n'
        "model = init_detector('run/lazy.py', 'run/epoch_2.pth', device='cpu')\n"
        'print(len(inference_detector(model, sys.argv[1]).pred_instances))'
    )
    image = next((shapes / 'images' / 'validation').iterdir())
    done = run_process(sys.executable, '-c', code, image)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == 5


def test_a_lazy_segmentor_does_all_that_one_of_text_does(run_tool, shapes):
    """Bug: the same in MMSegmentation: its scope was not known, and `--out` and `--show-dir` depend on it."""
    config = framework_config('segmentor', shapes)
    assert run_tool('train', config, '--work-dir', 'run') == 0
    cfg = check_saved('run/epoch_1.pth', 'run/lazy.py')
    assert (cfg.default_scope, cfg.model.decode_head.norm_cfg.type) == ('mmseg', 'BN')
    options = ['--work-dir', 'test', '--show-dir', 'pictures', '--out', 'maps']
    assert run_tool('test', config, 'run/epoch_1.pth', *options) == 0
    names = {path.name for path in (shapes / 'images' / 'validation').iterdir()}
    assert {path.name for path in Path('pictures').iterdir()} == {path.name for path in Path('maps').iterdir()} == names
    assert cv2.imread(str(next(Path('maps').iterdir()))).shape == (64, 64, 3)
    assert run_tool('train', config, '--work-dir', 'run', '--resume', '--cfg-options', 'train_cfg.max_epochs=2') == 0


@pytest.mark.parametrize(
    ('line', 'told'),
    [
        (
            "model['backbone'].update(window_sise=4)",
            "model.backbone: SwinTransformerV2 got an unexpected .*'window_sise' .Did you mean window_size",
        ),
        (
            "default_hooks['checkpoint'].update(intervall=1)",
            'default_hooks.checkpoint.intervall: save_checkpoint has no such argument',
        ),
        ('custom_hooks.append(dict(type=EpochSeedHook, sede=1))', 'custom_hooks.1.sede: EpochSeedHook has no such'),
        ("optim_wrapper['optimizer'].update(lrr=1)", 'optim_wrapper.optimizer.lrr: AdamW has no such argument'),
        ('custom_hooks.append(dict(type=loader))', '^error: custom_hooks.1.type=<function loader'),
        ('custom_hooks.append(dict(type=os))', "^error: custom_hooks.1.type=<module 'os'"),
        ('optim_wrapper.update(paramwise_cfg=dict(decay_rate=0.9))', 'paramwise_cfg.decay_rate has no effect'),
        (
            'from swinv2_mm.engine import EpochSeedHok\ncustom_hooks.append(dict(type=EpochSeedHok))',
            'Failed to import EpochSeedHok from swinv2_mm.engine in',
        ),
        ('from mmpretrain.models import ImageClassifier\nmodel.update(type=ImageClassifier)', 'builds on MMPretrain'),
        (
            "from swinv2_mm.engine import Pretrained\nmodel['backbone'].update("
            "init_cfg=dict(type=Pretrained, checkpoint='gone.pth'))",
            'model.backbone.init_cfg: .*gone.pth',
        ),
        (
            "from mmengine.model.weight_init import PretrainedInit\nmodel['backbone'].update("
            "init_cfg=dict(type=PretrainedInit, checkpoint='gone.pth'))",
            'model.backbone.init_cfg.checkpoint: .*gone',
        ),
        ('nothing = unknown', "lazy.py, line [0-9]+ cannot be read: NameError: name 'unknown'"),
        ('with read_base():\n    from .nowhere import *', 'nowhere.py not found'),
    ],
)
def test_a_mistake_is_told_by_its_key_before_anything_is_written(line, told, run_tool, capsys):
    """Bugs: a traceback through mmengine; classes for types that the dry run could not compare, and so passed."""
    assert run_tool('train', write(f'{TINY}{line}\n'), '--work-dir', 'run') == 2
    text = capsys.readouterr().err
    assert re.search(told, text), text
    assert not Path('run').exists()


def test_a_mistake_in_an_inherited_lazy_config_is_told_by_its_file_and_line():
    """Bug: the file that was passed is blamed for what it inherits."""
    write('a = 1\nb = unknown\n', 'base.py')
    with pytest.raises(UserError, match=r"base.py, line 2 \(inherited by lazy.py\).*NameError.*'unknown'"):
        load_config(write('from mmengine.config import read_base\nwith read_base():\n    from .base import *\n'))
