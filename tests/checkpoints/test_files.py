"""Reading a checkpoint runs no code from it."""

import argparse
import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from support.versions import needs_safe_globals

from swinv2_mm.checkpoints.files import read_file, weights_in
from swinv2_mm.errors import UserError

W, EMA = {'weight': torch.arange(6.0)}, {'weight': torch.ones(6)}
PAGE = b'\n<!DOCTYPE html><html><body>Please log in</body></html>'
POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab\nsize 12345\n'


class Call:
    """Pickles as a call; being callable, it may also stand in the place of the function of another."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __call__(self):
        raise AssertionError('only to be pickled')

    def __reduce__(self):
        return self.reduced


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def legacy(content):
    return saved(content, _use_new_zipfile_serialization=False)


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        file.writestr('readme.txt', 'no weights')
    return buffer.getvalue()


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Read bytes that are to be refused; returns the message, after checking that nothing of them ran."""
    monkeypatch.chdir(tmp_path)

    def read(data, name='weights.pth'):
        Path(name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            read_file(name)
        message = str(caught.value)
        assert name in message and '\n' not in message and 'weights_only' not in message
        assert os.listdir() == [name]
        return message

    return read


@pytest.mark.parametrize(
    ('name', 'data', 'words'),
    [
        ('weights.pth', b'', 'an empty file'),
        ('weights.pth', b'just some\nwords', r"a text file that starts with 'just some\nwords'"),
        ('weights.pth', ('a' + 'é' * 400).encode(), 'a text file that starts with'),
        ('weights.pth', PAGE, 'a web page'),
        ('weights.pth', POINTER, 'git lfs pull'),
        ('weights.pth', saved(W)[:-100], 'its end is missing'),
        ('weights.pth', legacy(W)[:-20], 'an incomplete copy'),
        ('weights.pth', legacy(W)[:10], 'an incomplete copy'),
        ('weights.pth', bytes(range(256)), 'is no checkpoint'),
        ('weights.pth', zipped(), 'is no checkpoint'),
        ('weights.pth', saved(3), 'it holds an object of type int'),
        ('weights.pth', saved([W]), 'it holds an object of type list'),
        ('weights.pth', safetensors.torch.save(W), 'is no checkpoint'),
        ('weights.safetensors', b'', 'an empty file'),
        ('weights.safetensors', PAGE, 'a web page'),
        ('weights.safetensors', POINTER, 'git lfs pull'),
        ('weights.safetensors', safetensors.torch.save(W)[:-5], 'an incomplete one'),
        ('weights.safetensors', saved(W), 'is no safetensors file'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_file_that_is_no_checkpoint_is_described(name, data, words, refused):
    """Every file that cannot be read is named with what it is. Bug: an UnpicklingError that advises to run its code."""
    assert words in refused(data, name)


@pytest.mark.parametrize(('name', 'words'), [('gone.pth', 'does not exist'), ('folder', 'is a folder')])
def test_a_missing_file_is_named(name, words, tmp_path):
    """Bug: a FileNotFoundError or IsADirectoryError with a traceback."""
    (tmp_path / 'folder').mkdir()
    with pytest.raises(UserError, match=f'{name} {words}'):
        read_file(tmp_path / name)


EVIL = {
    'open': Call(open, 'code ran', 'w'),
    'system': Call(os.system, 'touch "code ran"'),
    'reduce': Call(Call(getattr, argparse.Namespace, 'mro')),
    'getattr': Call(Call(getattr, Call(np.dtype, 'f8'), 'newbyteorder'), Call(open, 'code ran', 'w')),
}


@pytest.mark.parametrize(
    'pack',
    [
        lambda evil: saved(evil),
        lambda evil: legacy(evil),
        lambda evil: saved({'state_dict': W, 'meta': {'cfg': 'model = dict()', 'hook_msgs': [evil]}}),
        lambda evil: legacy({'state_dict': W, 'config': Call(argparse.Namespace, state={'lr': evil})}),
        lambda evil: pickle.dumps({'state_dict': evil}, protocol=2),
    ],
    ids=['zip', 'legacy', 'in the meta', 'in a harmless object', 'bare pickle'],
)
@pytest.mark.parametrize('evil', EVIL)
def test_code_in_a_file_never_runs(evil, pack, refused, monkeypatch):
    """A file that asks for a call is refused, with what it asks for. Bug: a download takes over the machine."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    message = refused(pack(EVIL[evil]))
    if evil in ('open', 'system'):
        assert 'could run code' in message and f'.{evil}.' in message


@needs_safe_globals
def test_globals_allowed_by_other_code_are_refused(refused):
    """Bug: some library lists a function of its own as safe for torch, and from then on every file may call it."""
    with torch.serialization.safe_globals([(open, 'io.open'), (open, '_io.open')]):
        assert 'could run code' in refused(saved({'state_dict': W, 'x': EVIL['open']}))


@needs_safe_globals
def test_globals_allowed_by_other_code_stay_allowed_there(tmp_path):
    """Bug: torch knows two meanings of a name, takes either, and a good checkpoint is refused now and then."""
    torch.save({'state_dict': W, 'best': np.arange(3.0)}, tmp_path / 'weights.pth')
    name = Call(np.arange(3).__reduce__()[0]).reduced[0]
    others = [(lambda *_, i=i: 1 / 0, f'{name.__module__}.{name.__qualname__}') for i in range(20)]
    with torch.serialization.safe_globals(others):
        assert torch.equal(read_file(tmp_path / 'weights.pth')['state_dict']['weight'], W['weight'])
        assert set(others) <= set(torch.serialization.get_safe_globals())


def test_stand_ins_give_nothing_away(tmp_path):
    """The names that a file may use lead to nothing. Bug: getattr is the real one, and walks from a class anywhere."""
    hostile = {
        'attribute': Call(getattr, argparse.Namespace, '__init__'),
        'deep': Call(getattr, Call(getattr, HistoryBuffer, 'min'), '__globals__'),
        'object': Call(argparse.Namespace, '__class__', state={'__class__': 1, 'append': 2}),
        'scalar': Call(np.float64(0).__reduce__()[0], Call(np.dtype, 'O'), b'1234567'),
    }
    torch.save({'state_dict': W, **hostile}, tmp_path / 'hostile.pth')
    content = read_file(tmp_path / 'hostile.pth')
    for name in hostile:
        assert content[name] == {} and not vars(content[name]) and not callable(content[name])


class CfgNode(dict):
    """As in yacs: a dict with a state of its own."""

    __module__ = 'yacs.config'

    def __init__(self, entries):
        super().__init__(entries)
        self.__dict__['__immutable__'] = True
        self.__dict__['__deprecated_keys__'] = set()


HARMLESS = {
    'yacs': lambda: CfgNode({'MODEL': CfgNode({'NAME': 'swinv2', 'DEPTHS': [2, 2]}), 'LOCAL_RANK': 0}),
    'namespace': lambda: argparse.Namespace(lr=0.1, output=Path('out'), betas=(0.9, np.float64(0.999))),
    'message hub': lambda: {'log_scalars': OrderedDict({'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])})},
    'methods of HistoryBuffer': lambda: {'mean': HistoryBuffer.mean},
    'mmengine config': lambda: ConfigDict(model=ConfigDict(type='Detector', sizes=[1, 2])),
    'numpy scalars': lambda: [np.float64(0.5), np.float32(0.5), np.int64(3), np.bool_(True)],
    'numpy arrays': lambda: [np.arange(3), np.ones((2, 2), np.float32), np.array(['a', 'b'])],
    'random state': lambda: np.random.RandomState(0).get_state(),
    'path': lambda: Path('somewhere') / 'else',
}


@pytest.mark.parametrize('kind', HARMLESS)
@pytest.mark.parametrize('pack', [saved, legacy])
def test_training_checkpoints_are_read_without_their_packages(kind, pack, tmp_path, monkeypatch):
    """What trainings save beside the weights is passed over. Bug: only bare weights can be read, or yacs is needed."""
    with monkeypatch.context() as patch:
        module = types.ModuleType('yacs.config')
        module.CfgNode = CfgNode
        patch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
        patch.setitem(sys.modules, 'yacs.config', module)
        data = pack({'model': W, 'epoch': 3, 'extra': HARMLESS[kind](), 'last': torch.zeros(1)})
    (tmp_path / 'training.pth').write_bytes(data)
    content = read_file(tmp_path / 'training.pth')
    assert torch.equal(content['model']['weight'], W['weight'])
    assert content['epoch'] == 3 and torch.equal(content['last'], torch.zeros(1))


@pytest.mark.parametrize(
    ('kind', 'here', 'there'),
    [
        ('numpy arrays', b'numpy._core.', b'numpy.core.'),
        ('numpy arrays', b'numpy.core.', b'numpy._core.'),
        ('path', b'cpathlib\n', b'cpathlib._local\n'),
    ],
)
def test_moved_names_of_numpy_and_pathlib_are_read(kind, here, there, tmp_path):
    """Bug: a checkpoint that was saved with another version of NumPy or Python is refused."""
    data = legacy({'model': W, 'extra': HARMLESS[kind]()})
    (tmp_path / 'training.pth').write_bytes(data.replace(here, there))
    assert torch.equal(read_file(tmp_path / 'training.pth')['model']['weight'], W['weight'])


@pytest.mark.parametrize(
    ('content', 'ema', 'expected', 'container'),
    [
        (W, False, W, ''),
        ({'state_dict': W, 'meta': {}}, False, W, 'state_dict'),
        ({'model': W, 'optimizer': {'state': EMA}}, False, W, 'model'),
        ({'module': W, 'epoch': 1}, False, W, 'module'),
        ({'state_dict': 'see model', 'model': W}, False, W, 'model'),
        ({'model': W, 'model_ema': EMA}, False, W, 'model'),
        ({'model': W, 'model_ema': EMA}, True, EMA, 'model_ema'),
        ({'state_dict': W, 'state_dict_ema': EMA}, True, EMA, 'state_dict_ema'),
        ({'state_dict': EMA, 'ema_state_dict': W}, True, EMA, 'state_dict'),  # mmengine swaps them as it saves
        ({'state_dict': EMA, 'ema_state_dict': W}, False, EMA, 'state_dict'),
    ],
)
def test_weights_are_found(content, ema, expected, container):
    """Bug: the weights that were being trained pass for their average, or the optimizer's state for weights."""
    assert weights_in(content, ema) == (expected, container)


@pytest.mark.parametrize(
    ('content', 'ema', 'words'),
    [
        ({'epoch': 3, 'model': 'swinv2'}, False, 'no weights in it: its keys are epoch, model'),
        ({}, False, r'its keys are \(none\)'),
        ({'state_dict': {'epoch': 1}}, False, 'no weights in it'),
        ({'model': W}, True, 'no averaged weights.* its keys model'),
    ],
)
def test_content_without_weights_is_refused(content, ema, words):
    """Bug: an empty state_dict is converted, or the plain weights stand in for the average that was asked for."""
    with pytest.raises(UserError, match=words):
        weights_in(content, ema)
