"""tools/plan.py: tables and lines to paste, for a config of anybody."""

import re

import pytest
from support import ROOT

CONFIG = f"""
_base_ = '{ROOT}/configs/simmim_swinv2_t_shapes.py'
model = dict(backbone=dict(embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4, init_cfg=None))
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / 'own.py').write_text(CONFIG)
    return str(tmp_path / 'own.py')


def test_a_plan_is_printed(run_tool, capsys, config):
    """Bug: a table without a setting, or a command that names another config."""
    assert run_tool('plan', config, '--gpus', '4', '--shape', '64', '--batch', '2') == 0
    found = capsys.readouterr().out
    for way in ('DDP', 'ZeRO-1', 'FSDP2'):
        assert len(re.findall(rf'^ *{way} +(?:bf16|float32)', found, re.MULTILINE)) == 8
    assert found.count(f'bash tools/dist_train.sh {config} 4') == 2
    assert '(config)' in found and 'NVLink' in found and 'No GPU has confirmed' in found


def test_a_gpu_alone_shards_nothing(run_tool, capsys, config):
    """Bug: advice to divide among processes that are not there."""
    assert run_tool('plan', config, '--gpus', '1', '--shape', '64') == 0
    found = capsys.readouterr().out
    assert found.count(f'python tools/train.py {config}') == 2
    assert 'FSDP2' not in found and 'NVLink' not in found


def test_what_does_not_fit_is_said(run_tool, capsys, config):
    """Bug: a setting that does not fit as advice, or silence."""
    assert run_tool('plan', config, '--gpu-memory', '1', '--shape', '64', '--batch', '2') == 0
    found = capsys.readouterr().out
    assert 'Nothing fits 1 GiB. Nearest is' in found
    assert re.findall(r'(yes|no)(?: \(config\))? *$', found, re.MULTILINE) == ['no'] * 24
    assert 'GiB more: take more GPUs' in found


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--gpus', '0'], '--gpus: expected the number of processes'),
        (['--gpu-memory', '-1'], '--gpu-memory: expected GiB of a GPU'),
        (['--batch', '0'], '--batch: expected the images of a process'),
        (['--shape', '1', '2', '3'], '--shape: expected rows and columns'),
    ],
)
def test_wrong_arguments_end_with_a_message(run_tool, capsys, config, arguments, message):
    """Bug: a traceback, or a plan of nothing."""
    assert run_tool('plan', config, *arguments) == 2
    assert message in capsys.readouterr().err
