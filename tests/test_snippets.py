"""Every piece of code in README.md, docs/ and the backbone's docstrings runs, or is checked as far as possible here."""

import doctest
import re
import subprocess

import pytest
from support import ROOT
from support.snippets import BLOCKS, COMMANDS, LANGUAGES, Block, kind_of, whole_config
from support.snippets.commands import check_commands
from support.snippets.configs import check_configs
from support.snippets.programs import check_program, furnish

from swinv2_mm.errors import UserError
from swinv2_mm.models import swin_v2

EXAMPLES = [test for test in doctest.DocTestFinder().find(swin_v2) if test.examples]


def of_kind(kind):
    return [
        pytest.param(block, id=str(block)) for block in BLOCKS if block.language in LANGUAGES and kind_of(block) == kind
    ]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The folder of a reader: beside the checkout's configs, with configs of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ('configs', 'tools', 'benchmarks'):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """The folder that programs run in; what they read is made when one asks for it."""
    return tmp_path_factory.mktemp('programs')


@pytest.mark.parametrize('block', of_kind('config'))
def test_config(block, desk):
    """A config of the documentation parses, builds, fits its heads, and trains what it says with what it says; a piece
    does in every config that it may be pasted into, of both frameworks.

    Prevents: a snippet that dies at the reader, as AdamW on top of the momentum of SGD, an auxiliary head for ResNet's
    channels, or `pretrained` for ResNet's weights; and one that trains at a wrong rate without a word.
    """
    check_configs(block, desk)


@pytest.mark.parametrize('block', of_kind('program'))
def test_program(block, workplace):
    """A program of the documentation runs in a process of its own, on files under the names that it uses.

    Prevents: an example that lacks an import, uses a name that is gone, or prints something else than it says.
    """
    check_program(block.text, workplace)


@pytest.mark.parametrize('example', [pytest.param(test, id=test.name) for test in EXAMPLES])
def test_docstring(example, workplace, monkeypatch):
    """The examples in the backbone's docstrings give what stands below them. Prevents: an example nobody ran."""
    furnish(example.docstring, workplace)
    monkeypatch.chdir(workplace)
    report = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append, clear_globs=False)
    assert report == []


def test_the_docstrings_have_examples():
    """Prevents: examples that the search overlooks, and are checked by nobody."""
    assert 'swinv2_mm.models.swin_v2.SwinTransformerV2' in [test.name for test in EXAMPLES]


@pytest.mark.parametrize('block', of_kind('commands') + [pytest.param(block, id=str(block)) for block in COMMANDS])
def test_commands(block, desk, capsys):
    """Every command is one: the script exists, its own parser takes the arguments, configs and keys are there.

    Prevents: an option that was renamed, a config that moved, a target that `make` does not know.
    """
    check_commands(block.text, desk, capsys)


@pytest.mark.parametrize('block', of_kind('output'))
def test_output(block, desk, capsys):
    """What a command printed is left as it is; the command behind a prompt is checked. Prevents: a report of a command
    that nobody can type.
    """
    check_commands('\n'.join(line[2:] for line in block.text.splitlines() if line.startswith('$ ')), desk, capsys)


def test_every_block_is_of_a_known_kind():
    """Prevents: a block in a language that nobody checks, or a search that finds none."""
    kinds = [kind_of(block) for block in BLOCKS]
    assert min(kinds.count(kind) for kind in ('program', 'config', 'commands', 'output')) >= 3


SGD = (
    "_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'\nmodel = dict(backbone=dict(_delete_=True, "
    "type='swinv2_mm.SwinTransformerV2'), neck=dict(in_channels=[96, 192, 384, 768]))\n"
)
WITHOUT_SGD = "optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))"
LAYER_DECAY = (
    WITHOUT_SGD[:-1] + ", constructor='swinv2_mm.LayerDecayOptimWrapperConstructor', "
    'paramwise_cfg=dict(decay_rate=0.9))'
)
BROKEN = {  # and what is said about it
    'no_language_we_know': ('yaml', 'model: tiny', 'nobody knows'),
    'not_python': ('python', 'model = dict(', 'never closed'),
    'no_import': ('python', 'print(1)\nSwinTransformerV2()', 'NameError'),
    'prints_something_else': ('python', 'print(1)   # 2', "'2' in '1'"),
    'wrong_argument': ('python', "model = dict(backbone=dict(window='8'))", 'window'),
    'wrong_channels': ('python', SGD.replace('768', '512'), 'takes 512 channels and gets 768'),
    'pretrained_of_resnet': ('python', whole_config('mmseg').replace('pretrained=None,', ''), 'pretrained'),
    'channels_of_resnet': (
        'python',
        whole_config('mmseg').replace('in_channels=384', 'num_convs=1'),
        'Invalid channel dimensions',
    ),
    'schedule_of_sgd': ('python', whole_config('mmseg').split('param_scheduler')[0] + LAYER_DECAY, 'eta_min'),
    'momentum_of_sgd': ('python', SGD + "optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-4))", 'momentum'),
    'decays_norms': ('python', SGD + WITHOUT_SGD, 'patch_embed.proj.bias decays'),
    'no_such_release': ('python', "init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint='swinv2_tiny')", 'no release'),
    'no_such_hook': ('python', "custom_hooks = [dict(type='NoHook')]", 'NoHook'),
    'no_such_option': ('bash', 'python tools/train.py CONFIG --bf16', '--bf16'),
    'no_such_config': ('bash', 'python tools/train.py configs/swin.py', 'configs/swin.py'),
    'no_such_key': ('bash', 'python tools/train.py CONFIG --cfg-options model.backbone.window=8', 'backbone.window'),
    'no_such_target': ('bash', 'make everything', 'make'),
    'no_such_tool': ('bash', 'python tools/tain.py CONFIG', 'tain.py does not exist'),
    'no_such_source': ('bash', 'python tools/convert_ckpt.py swinv2_tiny out.pth', 'no release'),
    'unknown_command': ('bash', 'rm -r work_dirs', 'nobody knows'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_snippet_is_found(name, desk, capsys):
    """Prevents: checks that let everything through."""
    *broken, told = BROKEN[name]
    block = Block('page.md', 1, *broken)
    expected = AssertionError, UserError, SyntaxError, TypeError, RuntimeError, subprocess.CalledProcessError
    with pytest.raises(expected, match=re.escape(told)):
        match kind_of(block):
            case 'config':
                check_configs(block, desk)
            case 'program':
                check_program(block.text, desk)
            case 'commands':
                check_commands(block.text, desk, capsys)
