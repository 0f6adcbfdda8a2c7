"""Classifiers with their heads: what they say of an image is what their own package says."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors.torch import load_file

from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.weights import check_load_from
from swinv2_mm.engine.saving.matching import misfits
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
BACKBONE = dict(type='swinv2_mm.SwinTransformerV2', embed_dims=16, depths=(1, 2), num_heads=(1, 2))
WINDOWS = ['--pretrained-window-sizes', '4']
HEAD = {
    'microsoft': ('head.weight', 'head.bias'),
    'timm': ('head.fc.weight', 'head.fc.bias'),
    'huggingface': ('classifier.weight', 'classifier.bias'),
    'mmpretrain': ('head.fc.weight', 'head.fc.bias'),
    'torchvision': ('head.weight', 'head.bias'),
}
BEFORE = {'huggingface': 'swinv2.', 'mmpretrain': 'backbone.'}


@pytest.fixture
def whole(randomize):
    """The ``state_dict`` of MMPretrain's ``ImageClassifier`` around our backbone, and a file of each code base."""
    backbone = randomize(MODELS.build(dict(BACKBONE, window_size=4, out_indices=(1,)))).state_dict()
    head = torch.nn.Linear(32, 5).state_dict()
    for layout, names in HEAD.items():
        state = {BEFORE.get(layout, '') + key: t for key, t in export_state_dict(backbone, layout)[0].items()}
        torch.save(state | dict(zip(names, head.values(), strict=True)), f'{layout}.pth')
    whole = {f'backbone.{key}': tensor for key, tensor in backbone.items()}
    whole |= {f'head.fc.{key}': tensor for key, tensor in head.items()}
    torch.save(dict(state_dict=whole, meta={}), 'openmmlab.pth')
    return whole


def same(state, others):
    return state.keys() == others.keys() and all(torch.equal(state[key], others[key]) for key in state)


def test_logits_equal_those_of_transformers(randomize, run_tool, capsys):
    """The printed backbone and the head, without MMPretrain. Bug: classes in another order, a head without its bias, a
    mean over the wrong map."""
    transformers = pytest.importorskip('transformers', reason='the peer to compare with is not installed')
    config = transformers.Swinv2Config(
        image_size=64, embed_dim=16, depths=[1, 2], num_heads=[1, 2], window_size=4, num_labels=7
    )
    peer = randomize(transformers.Swinv2ForImageClassification(config)).eval()
    peer.save_pretrained('peer')
    assert run_tool('convert_ckpt', 'peer', 'ours.pth', '--classifier', '--verify') == 0
    lines = capsys.readouterr().out.partition('backbone=')[2]
    backbone, _, load_from = lines.partition('\nload_from=')
    assert eval(load_from) == 'ours.pth'
    state = torch.load('ours.pth')['state_dict']
    weight, bias = state.pop('head.fc.weight'), state.pop('head.fc.bias')
    model = MODELS.build(eval(backbone) | dict(window_size=4)).eval()
    model.load_state_dict({key.removeprefix('backbone.'): tensor for key, tensor in state.items()}, strict=True)
    image = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = peer(image).logits
        (features,) = model(image)
        logits = F.linear(features.mean((2, 3)), weight, bias)
    assert expected.abs().max() > 0.5
    assert (logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize('source', [*HEAD, 'openmmlab'])
def test_classifiers_of_all_code_bases_are_one(source, whole, run_tool, capsys):
    """With every key accounted for. Bug: a head under a name that MMPretrain does not know, or left behind."""
    assert run_tool('convert_ckpt', f'{source}.pth', 'ours.pth', '--classifier', '--json', *WINDOWS) == 0
    report = json.loads(capsys.readouterr().out)
    state = torch.load('ours.pth')['state_dict']
    assert same(state, whole)
    assert report['meta']['source_layout'] == source and report['missing'] == []
    assert set(report['sources']) == whole.keys() - {'backbone.pretrained_windows'}
    original = torch.load(f'{source}.pth')
    used = [key for keys in report['sources'].values() for key in keys]
    assert {*used, *report['dropped']} == set(original.get('state_dict', original))


@pytest.mark.parametrize('target', ['microsoft', 'timm', 'huggingface'])
def test_classifiers_go_to_other_code_bases(target, whole, run_tool):
    """Bug: a head under our name in their file, or names without the prefix of their model."""
    assert run_tool('convert_ckpt', 'openmmlab.pth', 'out.safetensors', '--classifier', '--to', target) == 0
    assert same(load_file('out.safetensors'), torch.load(f'{target}.pth'))


def test_without_the_option_the_backbone_alone_is_written(whole, run_tool):
    """Bug: a prefix that load_checkpoint of a backbone does not expect."""
    assert run_tool('convert_ckpt', 'microsoft.pth', 'ours.pth', *WINDOWS) == 0
    assert 'stages.0.blocks.0.attn.qkv.weight' in torch.load('ours.pth')['state_dict']


@pytest.mark.parametrize('split', ['train', 'test'])
@pytest.mark.parametrize('layout', ['microsoft', 'timm', 'huggingface', 'torchvision'])
def test_load_from_names_the_conversion(layout, split, whole, run_tool):
    """Followed, the advice gives a file that fits. Bug: timm's head alone is loaded, since it has our name."""
    torch.save(dict(state_dict=torch.load(f'{layout}.pth')), 'theirs.pth')
    model = torch.nn.Module()
    model.backbone, model.head = MODELS.build(dict(BACKBONE, window_size=4, out_indices=(1,))), torch.nn.Module()
    model.head.fc = torch.nn.Linear(32, 5)
    cfg = Config(dict(load_from='theirs.pth', default_scope='mmpretrain'))
    with pytest.raises(UserError, match=r'of another code base') as told:
        check_load_from(cfg, Context((split,), model=model))
    command = re.search(r'python tools/convert_ckpt\.py (.+), and take', str(told.value))[1]
    assert run_tool('convert_ckpt', *command.split(), *WINDOWS) == 0
    check_load_from(Config(dict(cfg, load_from='classifier.pth')), Context((split,), model=model))
    assert not misfits(torch.load('classifier.pth')['state_dict'], model.state_dict())


FAULTS = {
    'head.weight, head.bias are missing: the head of a classifier. Take': lambda state: without(state, 'head'),
    'head.bias is missing': lambda state: without(state, 'head.bias'),
    'head.fc.weight (5, 16) instead of (5, 32)': lambda state: state | {'head.weight': torch.ones(5, 16)},
    'head.fc.bias (1, 5) instead of': lambda state: state | {'head.bias': torch.ones(1, 5)},
    'hold NaN or infinity: head.fc.weight': lambda state: state | {'head.weight': torch.full((5, 32), math.nan)},
    'the layout simmim has no place for the head of a classifier': lambda state: state,
}


def without(state, start):
    return {key: tensor for key, tensor in state.items() if not key.startswith(start)}


@pytest.mark.parametrize('words', FAULTS)
def test_a_file_without_a_whole_head_is_refused(words, whole, run_tool, capsys):
    """Bug: a head that stays random, of which mmengine only warns."""
    torch.save(FAULTS[words](torch.load('microsoft.pth')), 'source.pth')
    to = ['--to', 'simmim'] if 'simmim' in words else []
    assert run_tool('convert_ckpt', 'source.pth', 'out.pth', '--classifier', *WINDOWS, *to) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1 and not Path('out.pth').exists()
