"""MMPretrain trains the backbone on ImageNet by our tools: on coloured pictures, in the folders of ImageNet.

tests/environments.py has an environment with MMPretrain.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from support.resuming import same
from support.tiny_classes import CLASSES, CONFIG, TINY, flags, write_pictures
from support.tiny_layers import assert_close
from support.versions import needs

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.runs import prepare_training
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.errors import UserError

pytestmark = [pytest.mark.usefixtures('own_process'), needs('mmpretrain')]


@pytest.fixture
def pictures(tmp_path):
    return write_pictures(tmp_path)


def test_trains_tests_and_resumes(pictures, run_tool, capfd):
    """It learns three colours, says its accuracy, and ends in the same weights after an interruption; Pretrained takes
    the backbone of the checkpoint.

    Bug: a run that stops in MMPretrain's data, Mixup that depends on how often a run began, or a warning that a
    pre-training should start with pre-trained weights.
    """
    assert run_tool('train', CONFIG, '--work-dir', 'run', *flags(TINY | {'optim_wrapper.optimizer.lr': 1e-2})) == 0
    log = next(Path('run').glob('*/*.log')).read_text()
    assert 'random weights' not in log
    assert re.search(r'^train +24\nval +9\n\nclass +train, pictures +val, pictures\nblue +8 +3$', log, re.MULTILINE)
    capfd.readouterr()
    assert run_tool('test', CONFIG, 'run/epoch_3.pth', '--work-dir', 'tested', '--out', 'out.pkl', *flags(TINY)) == 0
    accuracy = re.search(r'^accuracy/top1 ([\d.]+)$', capfd.readouterr().out, re.MULTILINE)
    assert accuracy and float(accuracy[1]) > 60
    options = flags(TINY | {'optim_wrapper.optimizer.lr': 1e-2})
    assert run_tool('train', CONFIG, '--work-dir', 'again', '--resume', 'run/epoch_1.pth', *options) == 0
    straight, resumed = (read_checkpoint(f'{folder}/epoch_3.pth') for folder in ('run', 'again'))
    assert same(straight['state_dict'], resumed['state_dict'])
    sizes = {'embed_dims': 16, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8), 'window_size': 16}
    start = {'type': 'swinv2_mm.Pretrained', 'checkpoint': 'run/epoch_3.pth'}
    backbone = SwinTransformerV2(**sizes, init_cfg=start)
    backbone.init_weights()
    assert backbone.pretrained_window_sizes == ((8, 8),) * 4
    assert torch.equal(backbone.patch_embed.proj.weight, straight['state_dict']['backbone.patch_embed.proj.weight'])


def test_residual_branches_start_at_zero():
    """And the linear layers as MMPretrain's. Bug: MMPretrain's init_cfg of the model, which sets all norms to 1."""
    cfg = load_config(CONFIG, TINY)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model)
    model.init_weights()
    blocks = [block for stage in model.backbone.stages for block in stage.blocks]
    assert [norm.weight.abs().max() for block in blocks for norm in (block.norm1, block.norm2)] == [0] * 8
    assert 0.015 < model.head.fc.weight.std() < 0.025
    assert model.head.fc.bias.abs().max() == 0


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_converted_classifier_computes_the_logits_of_its_source(suffix, randomize, run_tool):
    """All of it loads, strictly, into the model of our config. Bug: a head under a name that MMPretrain does not have,
    or a mean over another map."""
    transformers = pytest.importorskip('transformers', reason='the source of the logits is not installed')
    sizes = dict(depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
    config = transformers.Swinv2Config(image_size=256, embed_dim=16, window_size=8, num_labels=3, **sizes)
    peer = randomize(transformers.Swinv2ForImageClassification(config)).eval()
    peer.save_pretrained('peer')
    assert run_tool('convert_ckpt', 'peer', f'ours.{suffix}', '--classifier') == 0
    cfg = load_config(CONFIG, TINY)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).eval()
    load_checkpoint(model, f'ours.{suffix}', strict=True)
    images = torch.randn(2, 3, 256, 256)
    with torch.inference_mode():
        logits, expected = model(images, mode='tensor'), peer(images).logits
    assert expected.abs().max() > 0.1
    assert_close(logits, expected, 1e-4)


def lack_a_folder(pictures):
    (pictures / 'val' / 'green').rename(pictures / 'val' / 'white')


def lack_val(pictures):
    shutil.rmtree(pictures / 'val')


def list_a_wrong_label(pictures):
    (pictures / 'meta').mkdir()
    (pictures / 'meta' / 'train.txt').write_text('red/0.jpg 2\nred/1.jpg 3\n')


def list_a_missing_picture(pictures):
    (pictures / 'meta').mkdir()
    (pictures / 'meta' / 'train.txt').write_text('red/0.jpg 2\nred/99.jpg 2\n')


@pytest.mark.parametrize(
    ('change', 'damage', 'message'),
    [
        ({}, lack_a_folder, r"train_dataloader\.dataset has a folder 'green', and val_dataloader\.dataset has none"),
        ({}, lack_val, r'data are missing: data/imagenet/val .*val_dataloader\.dataset\.data_prefix='),
        ({}, list_a_wrong_label, r'train_dataloader\.dataset: .*train\.txt: label 3 is none of its 3 classes'),
        ({}, list_a_missing_picture, r'1 of 2 images are missing, such as .*99\.jpg'),
        ({'model.head.num_classes': 1000}, None, r'^model\.head\.num_classes=1000 .*=3'),
        ({'data_preprocessor.num_classes': 1000}, None, r'^data_preprocessor\.num_classes=1000 .*data_prep\S+=3'),
        ({'model.head.in_channels': 96}, None, r'^model\.head\.fc takes 96 channels and gets 128'),
        ({'val_evaluator.topk': (1, 5)}, None, r'^val_evaluator\.topk=\(1, 5\) .*of 3 classes'),
        (dict.fromkeys(CLASSES), None, r'train has 3 folders \(blue, green, red\), and the config 1000 classes'),
        ({'data_preprocessor.mean': [1.0] * 4}, None, r'^data_preprocessor\.mean has 4 values, and std 3'),
        ({'model.train_cfg.augments': [{'type': 'Mixup2'}]}, None, r'augments\.0\.type=Mixup2 .*Did you mean Mixup'),
    ],
)
def test_mistakes_are_told_before_anything_is_written(change, damage, message, pictures, tmp_path):
    """By the key to change. Bug: an error in the first validation, hours later, or labels that mean other classes."""
    if damage:
        damage(pictures)
    options = {key: value for key, value in (TINY | change).items() if value is not None}
    with pytest.raises(UserError, match=message):
        prepare_training(str(CONFIG), work_dir='run', cfg_options=options | {'default_hooks.report': None})
    assert [path.name for path in tmp_path.iterdir()] == ['data']


def test_a_corrupt_picture_is_named(pictures, run_tool, capfd):
    """Bug: a traceback of OpenCV, from a data worker."""
    (pictures / 'train' / 'red' / '3.jpg').write_bytes(b'no picture')
    assert run_tool('train', CONFIG, '--work-dir', 'run', *flags(TINY)) == 2
    assert re.search(r'red/3\.jpg cannot be used: it is empty, incomplete or no image', capfd.readouterr().err)
