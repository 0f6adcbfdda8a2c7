"""The checkpoints of a run are plain data: torch alone reads them, and they hold everything that resuming needs."""

import pickle
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.registry import HOOKS
from support.plain import foreign
from support.tiny_fixtures import ROOT, mmengine_runner, put_back
from support.tiny_training import TinyImages, write_config

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.plain_data import LOG
from swinv2_mm.engine.saving.reading import read_checkpoint

pytestmark = pytest.mark.usefixtures('own_process')

# Averaged weights, a scheduler with a function in its state, a scaled loss; the tiny config itself saves the best.
RICH = """
custom_hooks.append(dict(type='EMAHook', momentum=0.1))
param_scheduler = [
    dict(type='OneCycleLR', eta_max=1e-2, total_steps=12, by_epoch=False),
    dict(type='CosineAnnealingMomentum', T_max=12, by_epoch=False),
]
optim_wrapper.update(type='swinv2_mm.AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
"""
# Imports fail of everything that a pickle of mmengine's names.
BARE = """
import sys

for name in ('mmengine', 'swinv2_mm', 'numpy'):
    sys.modules[name] = None
import warnings

warnings.simplefilter('ignore')  # torch says that it found no NumPy
import torch
"""


class NoData:
    """Holds something that is no data."""


@HOOKS.register_module()
class NoDataHook(Hook):
    """Puts an object into every checkpoint."""

    def before_train(self, runner):
        runner.message_hub.update_info('gadget', NoData())

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint['late'] = {'gadgets': [1, NoData()], 'score': np.float32(0.5)}


@pytest.fixture(scope='module')
def rich(tmp_path_factory):
    """A folder with the config ``rich.py`` and its finished training in ``run``."""
    folder = tmp_path_factory.mktemp('rich')
    with put_back():
        train(prepare_training(write_config(folder, 'rich.py', RICH), work_dir=str(folder / 'run')))
    return folder


def python(code, *arguments):
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)


def assert_same_state(path, expected_path):
    """The same weights, averages, optimizer, schedulers, scale of the loss, log and best score in two checkpoints."""
    found, expected = read_checkpoint(path), read_checkpoint(expected_path)
    assert found.keys() == expected.keys()
    for part in found.keys() - {'message_hub', 'meta'}:
        assert_equal(found[part], expected[part], part)
    (log, info, _), (wanted, wanted_info, _) = (checkpoint['message_hub'].values() for checkpoint in (found, expected))
    timers = {'train/time', 'train/data_time', 'val/time', 'val/data_time'}
    assert log.keys() == wanted.keys() > timers
    for name in log:
        assert type(log[name]) is HistoryBuffer and log[name].max_length == wanted[name].max_length
        for mine, other in zip(log[name].data, wanted[name].data, strict=True):
            assert mine.dtype == other.dtype and len(mine) == len(other)
            assert name in timers or np.array_equal(mine, other, equal_nan=True), name  # a norm may overflow
    assert info['best_score'] == wanted_info['best_score'] and info.keys() == wanted_info.keys()
    assert found['message_hub']['resumed_keys'] == expected['message_hub']['resumed_keys']


def assert_equal(value, expected, place):
    assert type(value) is type(expected), place
    if isinstance(value, torch.Tensor):
        assert torch.equal(value, expected), place
    elif isinstance(value, dict):
        assert value.keys() == expected.keys(), place
        for key, inner in value.items():
            assert_equal(inner, expected[key], f'{place}.{key}')
    elif isinstance(value, list | tuple):
        assert len(value) == len(expected), place
        for index, inner in enumerate(value):
            assert_equal(inner, expected[index], f'{place}[{index}]')
    else:
        assert value == expected, place


def test_bare_torch_reads_every_checkpoint(rich):
    """A process without mmengine, NumPy or us reads what a run saved, the best checkpoint, too.

    Bug: a class of a library in the file, so that torch's default refuses it everywhere but in our tools.
    """
    files = sorted((rich / 'run').glob('*.pth'))
    assert len(files) == 4 and any(file.name.startswith('best') for file in files)
    result = python(BARE + "print([torch.load(path)['meta']['epoch'] for path in sys.argv[1:]])", *files)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(', 1, 2, 3]')


def test_checkpoints_hold_plain_types_only(rich):
    """Tensors, numbers, strings, lists, tuples and dicts, in attributes of a state_dict, too.

    Bug: a type that today's torch happens to take, or that only a run with these hooks and wrappers saves.
    """
    checkpoint = torch.load(rich / 'run' / 'epoch_2.pth')
    assert foreign(checkpoint) == []
    assert type(checkpoint['state_dict']) is OrderedDict and checkpoint['state_dict']._metadata
    assert checkpoint['optimizer']['loss_scaler']['scale'] > 0
    assert 'anneal_func' not in checkpoint['param_schedulers'][0]
    assert checkpoint['message_hub'][LOG]['train/loss']['values'].shape == (8,)


def test_resumed_run_ends_as_the_uninterrupted_one(rich, tmp_path):
    """In the same weights, averages, optimizer, schedulers, log and best score, without a word about what was saved.

    Bug: a plain checkpoint from which something begins anew, such as the curves or the best score.
    """
    config = write_config(tmp_path, 'rich_resumed.py', RICH)
    train(prepare_training(config, work_dir='resumed', resume=str(rich / 'run' / 'epoch_1.pth')))
    assert_same_state('resumed/epoch_3.pth', rich / 'run' / 'epoch_3.pth')
    log = next(Path('resumed').glob('*/*.log')).read_text()
    assert 'message_hub' not in log and 'resumed key' not in log


def test_plain_mmengine_resumes_it(trained, tmp_path):
    """mmengine's own runner and hooks, with nothing allowed that torch refuses, end in the weights of the whole run.

    Bug: a checkpoint that is plain, but no longer one of mmengine: an assertion or a warning per logged number.
    """
    torch.serialization.clear_safe_globals()
    config = write_config(tmp_path, 'plain_resumed.py')
    runner = mmengine_runner(config, 'resumed', load_from=str(trained / 'epoch_1.pth'), resume=True)
    runner.train()
    found, expected = runner.model.state_dict(), torch.load(trained / 'epoch_3.pth')['state_dict']
    assert_equal(found, expected, 'state_dict')
    assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 8
    log = next(Path('resumed').glob('*/*.log')).read_text()
    assert 'message_hub' not in log and 'resumed key' not in log


@pytest.mark.parametrize('by', ['mmengine', 'us'])
def test_an_older_checkpoint_is_read_and_resumed(by, mmengine_trained, trained, tmp_path):
    """One with HistoryBuffers, as mmengine saves it, and as we did once, resumes to the end of the whole run.

    Bug: an update of the package after which running trainings cannot be resumed, or lose their curves.
    """
    folder = {'mmengine': mmengine_trained, 'us': trained}[by]
    checkpoint = read_checkpoint(folder / 'epoch_1.pth')
    hub = checkpoint['message_hub']
    hub['runtime_info']['best_score'] = np.float32(hub['runtime_info']['best_score'])
    assert LOG not in hub
    torch.save(checkpoint, 'old.pth')
    config = write_config(tmp_path, f'older_by_{by}.py')
    train(prepare_training(config, work_dir='resumed', resume='old.pth'))
    found, expected = read_checkpoint('resumed/epoch_3.pth'), read_checkpoint(folder / 'epoch_3.pth')
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        assert_equal(found[part], expected[part], part)
    # mmengine does not note what it has validated: it is validated once more.
    for name in ('train/loss', 'train/lr', *(['val/error'] if by == 'us' else [])):
        mine, wanted = (checkpoint['message_hub']['log_scalars'][name].data for checkpoint in (found, expected))
        assert np.array_equal(mine, wanted), name
    assert foreign(torch.load('resumed/epoch_3.pth')) == []


def test_the_registry_alone_reads_what_mmengine_saved(mmengine_trained, tmp_path):
    """``import swinv2_mm.registry``, which ``type='swinv2_mm…'`` does by itself, is enough for torch and mmengine; it
    allows no code, and changes nothing else.

    Bug: whoever uses the backbone without our tools gets torch's refusal from mmengine's --resume.
    """
    mark = tmp_path / 'code ran'

    class RunsCode:
        def __reduce__(self):
            return open, (str(mark), 'w')

    class WalksFromAClass:
        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    for evil in (RunsCode, WalksFromAClass):
        torch.save({'state_dict': evil()}, tmp_path / f'{evil.__name__}.pth')
    code = """
import os, pickle, sys, torch
import mmengine.runner  # OpenCV sets variables
before = dict(os.environ)
import swinv2_mm.registry
assert dict(os.environ) == before and not {'mmdet', 'mmseg', 'swinv2_mm.engine'} & sys.modules.keys()
from mmengine.runner import CheckpointLoader
for load in (torch.load, CheckpointLoader.load_checkpoint):
    assert len(load(sys.argv[1])['message_hub']['log_scalars']['train/loss'].data[0]) == 8
    for evil in sys.argv[2:]:
        try:
            load(evil)
        except pickle.UnpicklingError:
            continue
        raise SystemExit(f'{evil} was read')
"""
    result = python(code, mmengine_trained / 'epoch_2.pth', *sorted(tmp_path.glob('*.pth')))
    assert (result.returncode, result.stderr) == (0, '')
    assert 'swinv2' not in result.stdout and not mark.exists()


def test_what_is_no_data_is_left_out_by_name(tmp_path):
    """An object in a checkpoint, put there by a hook, is left out with one warning; the rest can be read.

    Bug: an error in the middle of the training; a checkpoint that nobody can read; a loss that nobody hears of.
    """
    extra = RICH + "custom_hooks.append(dict(type='NoDataHook'))\n"
    train(prepare_training(write_config(tmp_path, 'gadget.py', extra), work_dir='run'))
    result = python(BARE + "print(torch.load(sys.argv[1])['late'])", tmp_path / 'run' / 'epoch_3.pth')
    assert result.stdout.strip() == "{'gadgets': [1, None], 'score': 0.5}", result.stderr
    hub = torch.load('run/epoch_3.pth')['message_hub']
    assert 'gadget' not in hub['runtime_info'] and 'gadget' not in hub['resumed_keys']
    log = next(Path('run').glob('*/*.log')).read_text()
    assert log.count('message_hub.runtime_info.gadget (NoData)') == 1 and log.count('late.gadgets[1] (NoData)') == 1
    assert 'anneal_func' not in log  # the scheduler's own function


def metainfo(kind):
    if kind == 'tuples':
        return {'classes': ('cat', 'dog'), 'palette': [(1, 2, 3), (4, 5, 6)], 'label_map': None}
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import ADE20KDataset

    return {'mmdet': CocoDataset, 'mmseg': ADE20KDataset}[kind].METAINFO


@pytest.mark.parametrize('kind', ['tuples', 'mmdet', 'mmseg'])
def test_resuming_says_nothing_of_an_unchanged_dataset(kind, tmp_path, monkeypatch):
    """mmengine compares the classes and colours of the dataset with the saved ones as pickles.

    Bug: a warning at every --resume that the dataset is another one, since plain data are pickled otherwise.
    """
    if kind in ('mmdet', 'mmseg'):
        pytest.importorskip(kind)
    monkeypatch.setattr(
        TinyImages, 'metainfo', property(lambda self: pickle.loads(pickle.dumps(metainfo(kind)))), raising=False
    )
    # mmengine would take runs of one name that start in the same second for one.
    first, second, third = (
        write_config(tmp_path, f'{kind}_{number}.py', train_cfg='dict(by_epoch=True, max_epochs=1)')
        for number in range(3)
    )
    train(prepare_training(first, work_dir='run'))
    checkpoint = torch.load('run/epoch_1.pth')
    assert foreign(checkpoint) == [] and len(checkpoint['meta']['dataset_meta']['classes']) >= 2
    train(prepare_training(second, work_dir='run', resume='auto'))
    assert all('metainfo' not in log.read_text() for log in Path('run').glob('*/*.log'))
    monkeypatch.setattr(TinyImages, 'metainfo', {'classes': ('cat', 'cow')})
    train(prepare_training(third, work_dir='run', resume='auto'))
    assert any('metainfo' in log.read_text() for log in Path('run').glob('*/*.log'))
