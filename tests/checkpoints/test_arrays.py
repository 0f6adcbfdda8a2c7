"""Weights that were saved as NumPy's arrays, by torch or in a plain pickle as of detectron2."""

import io
import pickle
import sys

import numpy as np
import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import unpickling
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.files import read_weights
from swinv2_mm.checkpoints.load import open_checkpoint
from swinv2_mm.errors import UserError

TINY = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))
ARRAYS = {
    'float32': np.arange(6, dtype='f4').reshape(2, 3),
    'transposed': np.arange(6, dtype='f4').reshape(2, 3).T,
    'every third': np.arange(10.0)[::3],
    'repeated': np.broadcast_to(np.float32(1.5), (2, 2)),
    'big endian': np.arange(6, dtype='>f4').reshape(2, 3),
    'big endian, transposed': np.arange(6, dtype='>f8').reshape(2, 3).T,
    'float16': np.linspace(0, 1, 5, dtype='f2'),
    'float64': np.array([1 / 3, np.pi]),
    'whole': np.arange(-2, 3),
    'bytes': np.arange(250, 255, dtype='u1'),
    'unsigned': np.arange(3, dtype='u2') + 65530,
    'truth': np.array([True, False]),
    'one number': np.array(2.5),
    'empty': np.zeros((0, 3), 'f4'),
}


def by_torch(content, path, protocol):
    torch.save(content, path, _use_new_zipfile_serialization=bool(protocol))


def by_pickle(content, path, protocol):
    path.write_bytes(pickle.dumps(content, protocol=protocol))


@pytest.mark.parametrize('version', [unpickling.VERSION, (2, 1)])
@pytest.mark.parametrize(
    ('save', 'protocol'), [(by_torch, 0), (by_torch, 1), *((by_pickle, protocol) for protocol in (2, 3, 4, 5))]
)
def test_arrays_come_back_as_tensors(save, protocol, version, tmp_path, monkeypatch):
    """Numbers, shape and type stay, whatever the order in memory. Bug: the columns of a transposed weight are its rows,
    or the bytes of another machine are read the wrong way round."""
    monkeypatch.setattr(unpickling, 'VERSION', version)
    path = tmp_path / 'weights.pkl'
    save({'model': ARRAYS}, path, protocol)
    for name, found in read_weights(path)['model'].items():
        tensor, array = found.numbers(), ARRAYS[name]
        assert np.array_equal(tensor.numpy(), array) and tensor.shape == array.shape, name
        if name != 'unsigned':  # which torch below 2.3 lacks
            assert tensor.numpy().dtype == array.dtype.newbyteorder('='), name
        tensor.zero_()  # a copy of its own, not the bytes of the pickle
        assert found.numbers().equal(tensor) == (not array.any())


def test_strings_of_python_2_are_the_bytes_of_arrays(tmp_path):
    """Bug: a file that Python 2 wrote, as the model zoos of the time, ends in a UnicodeDecodeError."""
    raw = np.array([1 / 3, -1e30], 'f4').tobytes()
    dtype = b'cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
    empty = b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R'
    array = empty + b'(K\x01K\x02\x85' + dtype + b'\x89U\x08' + raw + b'tb'
    (tmp_path / 'w.pkl').write_bytes(b'\x80\x02}U\x01w' + array + b's.')
    assert read_weights(tmp_path / 'w.pkl')['w'].numbers().numpy().tobytes() == raw


@pytest.fixture
def model(randomize):
    return randomize(SwinTransformerV2(**TINY))


def as_arrays(weights, prefix='', **changes):
    return {prefix + key: tensor.numpy() for key, tensor in weights.items()} | changes


@pytest.mark.parametrize(('save', 'protocol'), [(by_torch, 1), (by_pickle, 2), (by_pickle, 5)])
def test_a_checkpoint_of_detectron2_is_read(save, protocol, model, tmp_path):
    """Its container and its prefix are found, and every output norm. Bug: its .pkl is called damaged."""
    weights, lost = export_state_dict(model.state_dict(), 'microsoft')
    weights |= {key: model.state_dict()[key] for key in lost} | {'norm1.weight': weights.pop('norm.weight')}
    weights |= {'norm1.bias': weights.pop('norm.bias')}
    content = as_arrays(weights, 'backbone.bottom_up.', **{'proposal_generator.anchor': np.ones(3, 'f4')})
    content = {'model': content, '__author__': 'third_party', 'matching_heuristics': True, 'iteration': np.int64(3)}
    save(content, tmp_path / 'model_final.pkl', protocol)
    loaded = open_checkpoint(str(tmp_path / 'model_final.pkl'))
    conversion = loaded.conversion
    assert (conversion.layout, conversion.prefix, loaded.container) == ('microsoft', 'backbone.bottom_up.', 'model')
    assert conversion.new == [] and list(conversion.dropped) == ['proposal_generator.anchor']
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in conversion.weights.items())


@pytest.mark.parametrize(
    ('array', 'words'),
    [
        (np.array([None, 3]), "'O8', no numbers"),
        (np.array(['a', 'b']), "'U1', no numbers"),
        (np.zeros(2, 'c8'), "'c8', no numbers"),
        (np.zeros(2, 'i4,f4'), "'V8', no numbers"),
    ],
)
@pytest.mark.parametrize(('save', 'protocol'), [(by_torch, 1), (by_pickle, 4)])
def test_an_array_without_numbers_is_named(save, protocol, array, words, model, tmp_path):
    """Bug: it is passed over, and its weight is said to be missing."""
    save({'model': as_arrays(model.state_dict(), odd=array)}, tmp_path / 'w.pkl', protocol)
    with pytest.raises(UserError, match=f'w.pkl: the array odd cannot be read: .*{words}.* Save it as float32'):
        open_checkpoint(str(tmp_path / 'w.pkl'))


@pytest.mark.parametrize(
    'state',
    [
        (1, (2,), np.dtype('f8'), False, b'12345678'),
        (1, (1,), np.dtype('f8'), False, [1.0]),
        (1, (-1,), np.dtype('f8'), False, b'12345678'),
        (1, 'x', np.dtype('f8'), False, b'12345678'),
        (1, (1,), 'f8', False, b'12345678'),
        (1, (1,), np.dtype('f8'), False, '\u0394' * 8),
        (3,),
        'words',
        None,
    ],
)
def test_a_description_that_numpy_does_not_write_is_refused(state, model, tmp_path):
    """Bug: numbers are read from beyond the end of the bytes, or a damaged file ends in a traceback."""

    class Described:
        def __reduce__(self):
            make, arguments, _ = np.ones(1).__reduce__()
            return make, arguments, state

    by_pickle({'model': as_arrays(model.state_dict(), odd=Described())}, tmp_path / 'w.pkl', 4)
    with pytest.raises(UserError, match='the array odd cannot be read: it has'):
        open_checkpoint(str(tmp_path / 'w.pkl'))


@pytest.mark.parametrize('encoding', ['rot13', 'os', 'utf-8'])
def test_bytes_are_spelled_in_one_way(encoding, tmp_path):
    """A pickle may not name a codec, since Python imports a module of that name. Bug: it runs what lies in a folder."""
    stream = io.BytesIO(b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX')
    stream.seek(0, io.SEEK_END)
    stream.write(len(encoding).to_bytes(4, 'little') + encoding.encode() + b'\x86R.')
    (tmp_path / 'w.pkl').write_bytes(stream.getvalue())
    before = set(sys.modules)
    with pytest.raises(UserError, match=r'could run code: it asks for _codecs\.encode'):
        read_weights(tmp_path / 'w.pkl')
    assert f'encodings.{encoding}' not in set(sys.modules) - before
