"""The unpickler for torch below 2.6, which has no list of allowed globals: it runs here with any torch."""

import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from swinv2_mm.checkpoints import unpickling
from swinv2_mm.checkpoints.files import read_file
from swinv2_mm.errors import UserError
from swinv2_mm.registry import OF_MMENGINE


@pytest.fixture(autouse=True)
def older_torch(monkeypatch):
    monkeypatch.setattr(unpickling, 'VERSION', (2, 1))


class Calls:
    """A pickle that calls something when it is read."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def hostile(folder):
    victim = str(folder / 'victim')
    return {
        'a command': Calls(os.system, f'touch {victim}'),
        'code in a string': Calls(eval, f'open({victim!r}, "w")'),
        'a file': Calls(open, victim, 'w'),
        'an attribute of an allowed class': Calls(getattr, collections.OrderedDict, '__init__'),
        "an array's pickle inside": Calls(np.load, victim),
        'a module': Calls(__import__, 'os'),
    }


@pytest.mark.parametrize('name', list(hostile(__import__('pathlib').Path())))
@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_would_run_is_refused(name, zipped, protocol, tmp_path):
    """In both of torch's formats. Bug: on an older torch a checkpoint runs code."""
    content = {'state_dict': {'a': torch.zeros(2)}, 'more': hostile(tmp_path)[name]}
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    if name != 'an attribute of an allowed class':  # for weights getattr is a stand-in that does nothing
        with pytest.raises(UserError, match='refused, because reading it could run code'):
            read_file(path)
    with pytest.raises(Exception, match=r'Unsupported GLOBAL|unsupported GLOBAL'):
        unpickling.load(path, OF_MMENGINE)
    assert not (tmp_path / 'victim').exists()


@pytest.mark.parametrize('target', ['torch._utils _rebuild_tensor_v2', 'collections OrderedDict'])
def test_functions_and_classes_get_no_state(target, tmp_path):
    """A pickle may set attributes of any object it can name. Bug: it changes a function of torch for the process."""
    stream = io.BytesIO()
    module, name = target.split()
    stream.write(b'\x80\x02c' + f'{module}\n{name}\n'.encode() + b'}q\x00X\x05\x00\x00\x00mine_K\x01sb.')
    module = unpickling.unpickler_for(())
    with pytest.raises(pickle.UnpicklingError, match='state for an object of type'):
        module.load(io.BytesIO(stream.getvalue()))
    assert not hasattr(torch._utils._rebuild_tensor_v2, 'mine_')


@pytest.mark.parametrize('zipped', [True, False])
def test_it_reads_what_trainings_save(zipped, tmp_path):
    """Every type of tensor, shared storages, and the objects of mmengine. Bug: a checkpoint of weights is refused."""
    whole = torch.arange(12.0).view(3, 4)
    dtypes = (torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    content = {
        'state_dict': collections.OrderedDict(
            {str(dtype): torch.ones(2, 3).to(dtype) for dtype in dtypes},
            parameter=torch.nn.Parameter(whole),
            transposed=whole.t(),
            row=whole[1],
            empty=torch.zeros(0, 3),
        ),
        'message_hub': {'history': history, 'best': np.float64(0.5), 'last': np.arange(3)},
        'meta': {'dtype': torch.bfloat16, 'shape': torch.Size([2, 3]), 'milestones': collections.Counter([3, 3, 5])},
    }
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = unpickling.load(path, OF_MMENGINE, mmap=zipped)
    for name, tensor in content['state_dict'].items():
        other = found['state_dict'][name]
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype and tensor.stride() == other.stride()
    rows = found['state_dict']
    assert rows['row'].untyped_storage().data_ptr() == rows['transposed'].untyped_storage().data_ptr()
    assert found['message_hub']['history'].mean() == 1.5 and found['message_hub']['best'] == 0.5
    assert found['meta'] == content['meta']


def test_a_torchscript_archive_is_refused(tmp_path, monkeypatch):
    """It holds a program. Bug: an older torch.load runs it, whatever the pickle module, for us or for mmengine."""
    path = tmp_path / 'w.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        for name in ('data.pkl', 'constants.pkl', 'code/__torch__.py', 'version'):
            archive.writestr(f'w/{name}', b'')
    with pytest.raises(UserError, match=r'asks for torch\.jit\.ScriptModule'):
        read_file(path)
    monkeypatch.setattr(torch, 'load', torch.load)
    unpickling.protect(OF_MMENGINE)
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(pickle.UnpicklingError, match=r'GLOBAL torch\.jit\.ScriptModule'):
            torch.load(source)


def test_protection_holds_for_every_caller(tmp_path, monkeypatch):
    """Bug: mmengine reads the same file with torch.load."""
    monkeypatch.setattr(torch, 'load', torch.load)
    unpickling.protect(OF_MMENGINE)
    torch.save({'more': Calls(os.system, f'touch {tmp_path / "victim"}')}, tmp_path / 'w.pth')
    with pytest.raises(pickle.UnpicklingError, match=r'Unsupported GLOBAL \w+\.system'):
        torch.load(tmp_path / 'w.pth', map_location='cpu', weights_only=False)  # what an unsafe caller would say
    torch.save({'a': torch.ones(2)}, tmp_path / 'good.pth')
    assert torch.load(io.BytesIO((tmp_path / 'good.pth').read_bytes()))['a'].sum() == 2
    assert not (tmp_path / 'victim').exists()
