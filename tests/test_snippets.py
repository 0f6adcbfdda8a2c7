"""Every piece of code in README.md, docs/ and the backbone's docstrings runs, or is checked as far as possible here."""

import ast
import doctest
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.catalog import find
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.engine.checks import DRY_RUN, run_checks
from swinv2_mm.engine.checks.model import build_model
from swinv2_mm.engine.checks.optimizer import build_optimizer
from swinv2_mm.engine.config import apply_options
from swinv2_mm.engine.config.form import check_form
from swinv2_mm.errors import UserError
from swinv2_mm.models import swin_v2

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
LANGUAGES = ('python', 'bash', '')

# Programs that need what is not among the test dependencies: they are compiled, and the names that they import from
# installed packages are looked up. Where the package is installed, they run.
ELSEWHERE = {'peft': 'adapters; not a dependency, and it installs accelerate and a hub client'}

# What a reader replaces by names of their own, and what stands for it here. Configs are the text of a file.
PLACEHOLDERS = {
    'CONFIG': "_base_ = 'configs/maskrcnn_swinv2_t.py'",
    'my_config.py': "_base_ = ['configs/maskrcnn_swinv2_t.py', 'configs/_base_/sharding/fsdp2.py']",
    'my_fruits.py': None,  # the block of docs/own_data.md that has fruits_nuts/
    'N': '2',
    'K': '3',
}


# Hooks that a run adds to the config (swinv2_mm/engine/runs.py): a config need not have them.
ADDED_HOOKS = {f'default_hooks.{name}' for name in ('progress', 'report', 'non_finite')}


@dataclass(frozen=True)
class Block:
    """A fenced block, or a command in the text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f'{self.page}:{self.line}'


def blocks_of(text, page):
    """The fenced blocks of a page; the line is the first inside of the fence."""
    found, opened = [], None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.lstrip().startswith('```'):
            if opened:
                opened[2].append(line)
        elif opened:
            found.append(Block(page, opened[0] + 1, opened[1], '\n'.join(opened[2])))
            opened = None
        else:
            opened = number, line.strip().strip('`'), []
    assert opened is None, f'{page}:{opened[0]}: the block does not end'
    return found


def commands_in_text(text, page):
    """Command lines in the running text, between single backticks."""
    prose = re.sub(r'^```.*?^```', lambda match: re.sub(r'[^\n]', '', match[0]), text, flags=re.M | re.S)
    return [
        Block(page, prose[: match.start()].count('\n') + 1, 'bash', ' '.join(match[1].split()))
        for match in re.finditer(r'`((?:python|bash|make|tools/\w+\.sh|--cfg-options)\s[^`]+)`', prose)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(), str(page.relative_to(ROOT)))]
COMMANDS = [block for page in PAGES for block in commands_in_text(page.read_text(), str(page.relative_to(ROOT)))]
EXAMPLES = [test for test in doctest.DocTestFinder().find(swin_v2) if test.examples]


def kind_of(block):
    """``'program'``, ``'config'`` (assignments alone), ``'commands'`` or ``'output'``."""
    assert block.language in LANGUAGES, f'{block}: nobody knows how to check {block.language!r}'
    if block.language == 'python':
        body = ast.parse(block.text).body
        return 'config' if all(isinstance(node, ast.Assign) for node in body) else 'program'
    return 'commands' if block.language == 'bash' else 'output'


def of_kind(kind):
    return [
        pytest.param(block, id=str(block)) for block in BLOCKS if block.language in LANGUAGES and kind_of(block) == kind
    ]


# --- configs ---------------------------------------------------------------------------------------------------------


def whole_config(scope):
    """The config for a framework in the README or docs/own_data.md; pieces are merged into it, too."""
    pages = 'README.md', 'docs/own_data.md'
    (text,) = [block.text for block in BLOCKS if block.page in pages and f"_base_ = '{scope}::" in block.text]
    return text


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """The folder of a reader: beside the checkout's configs, with configs of their own."""
    monkeypatch.chdir(tmp_path)
    for name in ('configs', 'tools', 'benchmarks'):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def bases(desk):
    """Configs with this backbone that a piece may be pasted into: ours, and a reader's on those of the frameworks."""
    for scope in ('mmdet', 'mmseg'):
        (desk / f'on_{scope}.py').write_text(whole_config(scope))
    return ['configs/maskrcnn_swinv2_t.py', 'configs/upernet_swinv2_t.py', 'on_mmdet.py', 'on_mmseg.py']


def configs_of(block, desk):
    """The config of a block; of a piece one for each base."""
    names = [target.id for node in ast.parse(block.text).body for target in node.targets]
    text = block.text
    if names == ['init_cfg']:  # an argument of the backbone
        text = f'model = dict(backbone=dict({text}))'
    texts = [text] if '_base_' in names else [f'_base_ = {base!r}\n{text}' for base in bases(desk)]
    return [parse(text, desk, f'snippet_{index}.py') for index, text in enumerate(texts)]


def parse(text, desk, name):
    (desk / name).write_text(text)
    return Config.fromfile(desk / name)


def check_config(cfg, optimizer):
    """Build what a run of the config would build, without memory, and look at it.

    Args:
        cfg: The config.
        optimizer: The block is about the optimizer, so look at its groups.
    """
    check_form(cfg)
    splits = tuple(split for split in ('train', 'val', 'test') if cfg.get(f'{split}_dataloader'))
    run_checks(cfg, splits, DRY_RUN)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_model(cfg.model)
        check_heads(model)
        check_weights_of(cfg.model.backbone)
        if optimizer:
            layer_decay = 'LayerDecay' in cfg.optim_wrapper.get('constructor', '')
            check_groups(model, build_optimizer(cfg.optim_wrapper, model).optimizer, layer_decay)
            check_schedule(cfg)


def check_heads(model):
    """What trains only takes the maps, too: the auxiliary heads of MMSegmentation, which a prediction leaves out."""
    backbone = model.backbone
    maps = [torch.empty(1, backbone.num_features[i], 8, 8, device='meta') for i in backbone.out_indices]
    if getattr(model, 'with_auxiliary_head', False):
        model.auxiliary_head.eval()(maps)


def check_weights_of(backbone):
    """The weights exist, are for this size, and have these pretrained windows where the config says any."""
    init_cfg = backbone.get('init_cfg')
    if init_cfg is None or init_cfg.checkpoint.startswith('work_dirs/'):
        return
    found = find(init_cfg.checkpoint)
    assert found, f'{init_cfg.checkpoint} is no release'
    release, _ = found
    assert backbone.arch == release.arch
    if backbone.get('pretrained_window_sizes') is not None:
        built = build_model(backbone, 'model.backbone')
        assert built.pretrained_window_sizes == tuple((w, w) for w in release.pretrained_window_sizes)


def check_groups(model, optimizer, layer_decay):
    """AdamW over everything, decay on matrices alone, and no block faster than the one behind it, or all alike."""
    assert type(optimizer) is torch.optim.AdamW
    groups = {id(p): group for group in optimizer.param_groups for p in group['params']}
    for name, p in model.backbone.named_parameters():
        exempt = p.ndim < 2 or 'cpb_mlp' in name or 'logit_scale' in name
        assert (groups[id(p)]['weight_decay'] == 0) == exempt, f'{name} decays' if exempt else f'{name} does not decay'
    rates = [groups[id(block.mlp.fc1.weight)]['lr'] for stage in model.backbone.stages for block in stage.blocks]
    assert rates == sorted(rates) and min(rates) > 0
    assert (rates[0] < rates[-1]) == layer_decay
    assert max(rates) < 1e-3, 'that is a rate for SGD'


def check_schedule(cfg):
    """The rate ends below where it started: MMSegmentation's schedules for SGD end at 1e-4."""
    for scheduler in cfg.param_scheduler:
        assert scheduler.get('eta_min', 0.0) < cfg.optim_wrapper.optimizer.lr / 10, scheduler


@pytest.mark.parametrize('block', of_kind('config'))
def test_config(block, desk):
    """A config of the documentation parses, builds, fits its heads, and trains what it says with what it says; a piece
    does in every config that it may be pasted into, of both frameworks.

    Prevents: a snippet that dies at the reader, as AdamW on top of the momentum of SGD, an auxiliary head for ResNet's
    channels, or `pretrained` for ResNet's weights; and one that trains at a wrong rate without a word.
    """
    for cfg in configs_of(block, desk):
        check_config(cfg, 'optim_wrapper' in block.text)


# --- programs --------------------------------------------------------------------------------------------------------


def make_release(path):
    """Random weights in Microsoft's layout: a file of that name comes before a download."""
    torch.manual_seed(0)
    torch.save({'model': export_state_dict(SwinTransformerV2('tiny').state_dict(), 'microsoft')[0]}, path)


def make_converted(path):
    release = path.with_name('swinv2_tiny_patch4_window8_256')
    make_release(release)
    tool(ROOT / 'tools' / 'convert_ckpt.py').main([str(release), str(path)])


def make_image(path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)).save(path)


def make_run(path):
    """The work dir of a run: its config and a checkpoint of random weights, with what a run says of its data."""
    import_scope = {'maskrcnn': 'mmdet', 'upernet': 'mmseg'}[path.parent.name.split('_')[0]]
    importlib.import_module(import_scope)
    cfg = Config.fromfile(ROOT / 'configs' / f'{path.parent.name}.py')
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path.parent / f'{path.parent.name}.py')
    with DefaultScope.overwrite_default_scope(import_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    data = cfg.test_dataloader.dataset.metainfo
    meta = dict(dataset_meta={key: list(value) for key, value in data.items()}, cfg=cfg.pretty_text, epoch=26)
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)


# What programs read, by the names that they use, and what makes it.
MADE = {
    'swinv2_tiny_patch4_window8_256': make_release,
    'swinv2_t.safetensors': make_converted,
    'image.png': make_image,
    'work_dirs/maskrcnn_swinv2_t_shapes/epoch_26.pth': make_run,
    'work_dirs/upernet_swinv2_t_shapes/epoch_32.pth': make_run,
}


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """The folder that programs run in; what they read is made when one asks for it."""
    return tmp_path_factory.mktemp('programs')


def furnish(text, folder):
    for name, make in MADE.items():
        path = folder / name
        if name in text and not path.exists():
            make(path)


def check_program(text, folder):
    """Run a program in a process of its own; it prints what the comment behind ``print`` says, if there is one."""
    missing = [
        name
        for name in ELSEWHERE
        if re.search(rf'^(from|import) {name}\b', text, re.M) and importlib.util.find_spec(name) is None
    ]
    if missing:
        return resolve(text, missing)
    furnish(text, folder)
    env = os.environ | dict(OMP_NUM_THREADS='1', TORCH_HOME=str(folder / 'torch'), HF_HUB_OFFLINE='1')
    done = subprocess.run([sys.executable, '-c', text], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    printed = ', '.join(done.stdout.splitlines())
    for said in re.findall(r'print\(.*\)   *# (.*)', text):
        assert said in printed
    return None


def resolve(text, missing):
    """Compile a program and look up what it imports from packages that are there."""
    tree = ast.parse(text)
    compile(tree, 'snippet', 'exec')
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] not in missing:
            module = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
    layers = {
        name.rpartition('.')[2]
        for name, layer in SwinTransformerV2('tiny').named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    named = re.search(r'target_modules=(\[.*?\])', text)
    assert named is None or set(ast.literal_eval(named[1])) <= layers


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


# --- commands --------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """Carries what a tool's parser made of a command line, instead of what the tool would do with it."""


@cache
def tool(path):
    name = f'snippet_{path.stem}'
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # scripts import their neighbours
        spec.loader.exec_module(module)
    return module


def parse_by_tool(path, arguments):
    """Have a tool's own parser read its arguments, and stop the tool there."""
    assert path.is_file(), f'{path} does not exist'
    original = ArgumentParser.parse_args

    def parse_args(parser, argv=None, namespace=None):
        raise Parsed(original(parser, argv, namespace))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ArgumentParser, 'parse_args', parse_args)
        patch.setattr(sys, 'argv', [str(path), *arguments])
        try:
            tool(path).main()
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f'{path} has no parser')


def read_config(name, desk):
    """The config that a command names: of the checkout, or one of the reader's own."""
    text = PLACEHOLDERS.get(name)
    if name == 'my_fruits.py':
        (text,) = [block.text for block in BLOCKS if "data_root='fruits_nuts/'" in block.text]
    if text is not None:
        return parse(text, desk, 'readers_own.py')
    assert (ROOT / name).is_file(), f'{name} does not exist'
    return Config.fromfile(ROOT / name)


def check_tool(path, arguments, desk, capsys):
    """Arguments, the config, the keys of ``--cfg-options`` and a released name are all there."""
    parsed = parse_by_tool(path, arguments)
    if getattr(parsed, 'config', None):
        cfg = read_config(parsed.config, desk)
        options = {
            key: value for key, value in (getattr(parsed, 'cfg_options', None) or {}).items() if key not in ADDED_HOOKS
        }
        capsys.readouterr()
        apply_options(cfg, options, parsed.config)
        assert 'warning' not in capsys.readouterr().err
    if path.stem == 'convert_ckpt' and '.' not in parsed.src and '://' not in parsed.src:
        assert find(parsed.src), f'{parsed.src} is no release'


def check_command(words, desk, capsys):
    """One command line, split into words."""
    while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):  # variables of the environment
        words = words[1:]
    match words:
        case ['pip', 'install', '--no-deps', *_, '.']:
            assert (ROOT / 'pyproject.toml').is_file()
        case ['make', target, *settings] if all('=' in setting for setting in settings):
            subprocess.run(['make', '-n', target], cwd=ROOT, check=True, capture_output=True)
        case ['python', '-m', 'swinv2_mm.doctor']:
            assert importlib.util.find_spec('swinv2_mm.doctor')
        case ['python', script, *arguments] if script.startswith(('tools/', 'benchmarks/')):
            check_tool(ROOT / script, arguments, desk, capsys)
        case ['--cfg-options', _, *_]:
            check_tool(ROOT / 'tools' / 'train.py', ['CONFIG', *words], desk, capsys)
        case ['bash', 'tools/dist_train.sh', config, number, *arguments]:
            if '--max-restarts' in arguments:
                at = arguments.index('--max-restarts')
                assert PLACEHOLDERS.get(arguments[at + 1], arguments[at + 1]).isdigit()
                arguments = arguments[:at] + arguments[at + 2 :]
            check_launch('dist_train.sh', 'train.py', number, [config, *arguments], desk, capsys)
        case ['bash', 'tools/dist_test.sh', config, checkpoint, number, *arguments]:
            check_launch('dist_test.sh', 'test.py', number, [config, checkpoint, *arguments], desk, capsys)
        case ['tools/slurm_train.sh', _, _, config, work_dir, *arguments]:
            check_launch('slurm_train.sh', 'train.py', '8', [config, '--work-dir', work_dir, *arguments], desk, capsys)
        case _:
            raise AssertionError(f'nobody knows how to check {shlex.join(words)}')


def check_launch(script, program, number, arguments, desk, capsys):
    assert (ROOT / 'tools' / script).is_file()
    assert PLACEHOLDERS.get(number, number).isdigit()
    check_tool(ROOT / 'tools' / program, arguments, desk, capsys)


def check_commands(text, desk, capsys):
    """Every command of a block; comments are left out, lines that go on are joined, what is piped on is left."""
    for line in re.sub(r'\\\n', ' ', text).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            check_command(words[: words.index('|')] if '|' in words else words, desk, capsys)


@pytest.mark.parametrize('block', of_kind('commands') + [pytest.param(block, id=str(block)) for block in COMMANDS])
def test_commands(block, desk, capsys):
    """Every command is one: the script exists, its own parser takes the arguments, configs and keys are there.

    Prevents: an option that was renamed, a config that moved, a target that `make` does not know.
    """
    check_commands(block.text, desk, capsys)


# --- the rest --------------------------------------------------------------------------------------------------------


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
                for cfg in configs_of(block, desk):
                    check_config(cfg, 'optim_wrapper' in block.text)
            case 'program':
                check_program(block.text, desk)
            case 'commands':
                check_commands(block.text, desk, capsys)
