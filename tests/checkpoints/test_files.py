"""Reading a checkpoint runs no code from it."""

import argparse
import gzip
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

from swinv2_mm.checkpoints.files import read_file, read_weights
from swinv2_mm.errors import UserError

W = {'weight': torch.arange(6.0)}
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


def zipped(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as file:
        for name in names:
            file.writestr(name, 'no weights')
    return buffer.getvalue()


def with_numpy(save):
    buffer = io.BytesIO()
    save(buffer, weight=np.ones(3)) if save is np.savez else save(buffer, np.ones(3))
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Read bytes that are to be refused; returns the message, after checking that nothing of them ran."""
    monkeypatch.chdir(tmp_path)

    def read(data, name='weights.pth', reader=read_weights):
        Path(name).write_bytes(data)
        with pytest.raises(UserError) as caught:
            reader(Path(name))
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
        ('weights.pth', zipped(), 'an empty zip archive'),
        ('weights.pth', zipped('readme.txt', 'w/model.pth'), 'a zip archive of readme.txt, w/model.pth; unpack it'),
        ('weights.npz', with_numpy(np.savez), 'safetensors.numpy.save_file'),
        ('weights.npy', with_numpy(np.save), 'one array of NumPy (.npy)'),
        ('weights.pth', scripted(), 'asks for torch.jit.ScriptModule'),
        ('weights.pth', b'{"error": "Repository not found"}', 'a JSON file'),
        ('weights.pth', b'[{"id": 1}]', 'a JSON file'),
        ('weights.pth', b'{"metadata": {}, "weight_map": {"a": "b"}}', 'the index of a model in several files'),
        ('weights.pth', b'<Error><Code>AccessDenied</Code></Error>', 'a web page'),
        ('weights.pth', b'\xef\xbb\xbf<HTML>', 'a web page'),
        ('weights.pth', gzip.compress(b'weights'), 'a compressed archive; unpack it'),
        ('weights.tar', b'weights.pth'.ljust(257, b'\0') + b'ustar', 'a tar archive; unpack it'),
        ('weights.h5', b'\x89HDF\r\n\x1a\n', 'a file of Keras or TensorFlow'),
        ('weights', b'\x89HDF\r\n\x1a\n', 'an HDF5 file'),
        ('weights.keras', zipped('config.json', 'model.weights.h5'), 'a file of Keras'),
        ('flax_model.msgpack', b'\x81\xa6params', 'a file of Flax (JAX)'),
        ('saved_model.pb', b'\x08\x01\x12', 'a file of TensorFlow'),
        ('model.ckpt-100.data-00000-of-00001', bytes(64), 'a file of TensorFlow'),
        ('weights.onnx', b'\x08\x07\x12\x07pytorch', 'a graph of ONNX'),
        ('weights.pkl', pickle.dumps(3), 'it holds an object of type int'),
        ('weights.pkl', pickle.dumps(np.ones(3)), 'it holds an array of NumPy'),
        ('weights.pkl', pickle.dumps({'weight': np.ones(300)})[:-100], 'an incomplete copy'),
        ('weights.pkl', pickle.dumps(W), 'asks for torch.'),
        pytest.param(
            'weights.pth', saved(W, pickle_protocol=4), 'with another pickle_protocol', marks=needs_safe_globals
        ),
        ('weights.pth', legacy(W)[:2] + b'\xff' + legacy(W)[3:], 'is no checkpoint'),
        ('weights.pth', saved(3), 'it holds an object of type int'),
        ('weights.pth', saved([W]), 'it holds an object of type list'),
        ('weights.pth', safetensors.torch.save(W), 'give it the ending .safetensors'),
        ('weights.safetensors', b'', 'an empty file'),
        ('weights.safetensors', PAGE, 'a web page'),
        ('weights.safetensors', POINTER, 'git lfs pull'),
        ('weights.safetensors', safetensors.torch.save(W)[:-5], 'an incomplete one'),
        ('weights.safetensors', saved(W), 'give it the ending .pth'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_file_that_is_no_checkpoint_is_described(name, data, words, refused):
    """Every file that cannot be read is named with what it is. Bug: an UnpicklingError that advises to run its code."""
    assert words in refused(data, name)
    if not name.endswith('.pkl'):
        assert words in refused(data, name, read_file)


def test_a_pickle_without_torch_is_left_to_those_who_read_it(refused):
    """Bug: mmengine reads a .pkl of detectron2 after the checks let it pass, and ends in an error about magic."""
    assert 'swinv2_mm.Pretrained and tools' in refused(pickle.dumps({'model': {}}), 'weights.pkl', read_file)


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
        lambda evil: pickle.dumps({'model': {'weight': np.ones(2)}, '__author__': evil}, protocol=4),
        lambda evil: pickle.dumps({'model': Call(np.ndarray, (2,), state=(1, (2,), evil, False, b'12345678'))}),
    ],
    ids=['zip', 'legacy', 'in the meta', 'in a harmless object', 'bare pickle', 'beside arrays', 'in an array'],
)
@pytest.mark.parametrize('evil', EVIL)
@pytest.mark.parametrize('reader', [read_file, read_weights])
def test_code_in_a_file_never_runs(reader, evil, pack, refused, monkeypatch):
    """A file that asks for a call is refused, with what it asks for. Bug: a download takes over the machine."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    data = pack(EVIL[evil])
    message = refused(data, reader=reader)
    if evil in ('open', 'system') and (reader is read_weights or data[1] != 4):  # torch reads no protocol 4
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
