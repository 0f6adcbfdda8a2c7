"""Commands of the documentation: the script exists, its own parser takes the arguments, configs and keys are there."""

import importlib.util
import re
import shlex
import subprocess
import sys
from argparse import ArgumentParser

import pytest
from mmengine.config import Config

from support import ROOT, load_script
from support.snippets import BLOCKS
from support.snippets.configs import parse
from swinv2_mm.checkpoints.catalog import find
from swinv2_mm.engine.config import apply_options

# What a reader replaces by names of their own, and what stands for it here. Configs are the text of a file.
PLACEHOLDERS = {
    'CONFIG': "_base_ = 'configs/maskrcnn_swinv2_t.py'",
    'my_config.py': "_base_ = ['configs/maskrcnn_swinv2_t.py', 'configs/_base_/sharding/fsdp2.py']",
    'my_fruits.py': None,  # the block of docs/own_data.md that has fruits_nuts/
    'N': '2',
    'K': '3',
}
# Hooks that a run adds to the config (swinv2_mm/engine/runs/complete.py): a config need not have them.
ADDED_HOOKS = {f'default_hooks.{name}' for name in ('progress', 'report', 'non_finite')}


class Parsed(Exception):
    """Carries what a tool's parser made of a command line, instead of what the tool would do with it."""


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
            load_script(path).main()
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
        case ['pip', 'install', '.']:
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
        case ['tools/slurm_test.sh', _, _, config, checkpoint, *arguments]:
            check_launch('slurm_test.sh', 'test.py', '8', [config, checkpoint, *arguments], desk, capsys)
        case ['tools/slurm_train.sh', _, _, config, work_dir, *arguments]:
            check_launch('slurm_train.sh', 'train.py', '8', [config, '--work-dir', work_dir, *arguments], desk, capsys)
        case _:
            raise AssertionError(f'nobody knows how to check {shlex.join(words)}')


def check_launch(script, program, number, arguments, desk, capsys):
    assert (ROOT / 'tools' / script).is_file()
    assert PLACEHOLDERS.get(number, number).isdigit()
    check_tool(ROOT / 'tools' / program, arguments, desk, capsys)


def check_commands(text, desk, capsys):
    """Every command of a block; comments are left out, lines that go on are joined, what is piped on is left.

    Of a job for Slurm, the training: tests/tools/test_slurm.py runs all of it.
    """
    if '#SBATCH' in text:
        (text,) = re.findall(r'bash (tools/slurm_train.sh .*) \|\|', text)
    for line in re.sub(r'\\\n', ' ', text).splitlines():
        words = shlex.split(line, comments=True)
        if words:
            check_command(words[: words.index('|')] if '|' in words else words, desk, capsys)
