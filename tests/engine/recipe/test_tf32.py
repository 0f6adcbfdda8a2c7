"""TF32: the flag, the key of a config, and the line that says what a GPU leaves unused."""

import logging

import pytest
import torch
from mmengine.config import Config
from support.tiny_training import write_config

from swinv2_mm.compat import multiplies_in_tf32
from swinv2_mm.engine.recipe import precision
from swinv2_mm.engine.recipe.precision import set_tf32
from swinv2_mm.engine.saving.reading import read_checkpoint

HALF = {'type': 'swinv2_mm.AmpOptimWrapper', 'dtype': 'auto'}


@pytest.fixture(autouse=True)
def _put_back():
    """By both settings, of which each can be read only where the other was not the last one (2.9)."""
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def said(monkeypatch):
    """A function that settles TF32 for a config on a device, and returns the lines that are logged."""

    def run(device, capability, trains=True, **cfg):
        lines = []
        monkeypatch.setattr(precision, 'get_device', lambda: device)
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
        monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'NVIDIA A100')
        monkeypatch.setattr(precision, 'print_log', lambda line, logger, level=logging.INFO: lines.append(line))
        set_tf32(Config(cfg), trains)
        return lines

    return run


def test_a_gpu_that_could_use_it_is_told_once(said):
    """In training and test, with the flag. Bug: float32 trains at an eighth of the rate, and nothing says so."""
    for trains in (True, False):
        (line,) = said('cuda', (8, 0), trains, optim_wrapper={'type': 'OptimWrapper'})
        assert 'NVIDIA A100' in line and '--tf32' in line and ('--amp' in line) == trains
        assert not multiplies_in_tf32()
    assert said('cuda', (8, 6), trains=False, optim_wrapper=HALF) != []  # a test computes in float32


@pytest.mark.parametrize(
    ('device', 'capability', 'cfg'),
    [
        ('cpu', (8, 0), {}),
        ('cuda', (7, 5), {}),
        ('cuda', (9, 0), dict(optim_wrapper=HALF)),
        ('cuda', (9, 0), dict(optim_wrapper={'type': 'OptimWrapper'}, fsdp2={'block_dtype': 'bfloat16'})),
    ],
    ids=['CPU', 'Turing', 'amp', 'FSDP2'],
)
def test_where_it_brings_nothing_nothing_is_said(device, capability, cfg, said):
    """Bug: a line that everybody sees is one that nobody reads."""
    assert said(device, capability, **cfg) == []


@pytest.mark.parametrize('own', ['torch.backends.cuda.matmul.allow_tf32 = True', 'new'])
def test_what_the_user_has_set_by_either_setting_is_seen(own, said):
    """Bug: RuntimeError, since torch 2.9 refuses to read the older setting after the newer one."""
    if own == 'new' and not hasattr(torch.backends.cuda.matmul, 'fp32_precision'):
        pytest.skip('this torch has the older setting only')
    if own == 'new':
        torch.backends.cuda.matmul.fp32_precision = 'tf32'
    else:
        torch.backends.cuda.matmul.allow_tf32 = True
    assert said('cuda', (8, 0)) == []
    (line,) = said('cuda', (8, 0), env_cfg={'tf32': True})
    assert 'round' in line
    assert torch.backends.cuda.matmul.allow_tf32 and multiplies_in_tf32()  # both can be read now


def test_it_is_switched_on_where_a_gpu_has_it(said):
    """Bug: a flag without effect, or without a word on a machine where it has none."""
    (line,) = said('cuda', (7, 5), env_cfg={'tf32': True})
    assert 'no effect' in line and not multiplies_in_tf32()
    (line,) = said('cuda', (8, 0), env_cfg={'tf32': True})
    assert '11 significant bits' in line and multiplies_in_tf32()


def test_the_flag_of_the_tools_is_the_key_of_the_config(run_tool, tmp_path, trained):
    """In training and test, with a line in the log; the saved config keeps it.

    Bug: a resumed run that multiplies in another precision, or a flag that one of the tools forgets.
    """
    for name in ('tf32_train', 'tf32_test'):
        write_config(tmp_path, f'{name}.py')
    assert run_tool('train', 'tf32_train.py', '--tf32', '--cfg-options', 'train_cfg.max_epochs=1') == 0
    assert 'tf32=True' in read_checkpoint('work_dirs/tf32_train/epoch_1.pth')['meta']['cfg']
    assert run_tool('test', 'tf32_test.py', trained / 'epoch_3.pth', '--tf32') == 0
    for name in ('tf32_train', 'tf32_test'):
        (log,) = (tmp_path / 'work_dirs' / name).rglob('*.log')
        assert 'tf32: no effect' in log.read_text() or torch.cuda.is_available()
