"""Values become plain data one by one, and the log comes back from it."""

from collections import Counter, OrderedDict, defaultdict, deque
from enum import IntEnum
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from support.plain import foreign

from swinv2_mm.engine.saving.plain_data import make_plain, restore_log, to_plain


class Level(IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ('value', 'plain'),
    [
        (np.float64(0.5), 0.5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_('a'), 'a'),
        (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
        (np.array([None, 'a']), [None, 'a']),
        (Level.HIGH, 3),
        (Path('a/b'), 'a/b'),
        (ConfigDict(a=[ConfigDict(b=1)]), {'a': [{'b': 1}]}),
        ({3, 1, 2}, [1, 2, 3]),
        (deque([1]), [1]),
        (range(2), [0, 1]),
        ({np.int64(1): (np.int64(2),)}, {1: (2,)}),
        (OrderedDict(a=np.float64(1)), OrderedDict(a=1.0)),
        (Counter([np.int64(1)]), Counter([1])),
        (defaultdict(list, a=[1]), {'a': [1]}),
        (b'', bytearray()),
        ({'f': open}, {}),
        (np.longdouble(1), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_kind_becomes_plain(value, plain):
    """Bug: a subclass that equals what it derives from is kept, and torch refuses its name."""
    found = to_plain(value)
    assert type(found) is type(plain) and repr(found) == repr(plain)


def test_what_is_plain_keeps_its_objects():
    """Bug: copies of tensors; the layout versions of state_dicts get lost; a dataset that pickles otherwise."""
    model = torch.nn.BatchNorm1d(2)
    value = {'a': [1, (2.5, 'x', None)], 'b': model.state_dict(), 'c': torch.Size([1]), 'd': torch.float16}
    plain = to_plain(value)
    assert plain.keys() == value.keys() and all(plain[key] is value[key] for key in 'acd')
    assert type(plain['b']) is OrderedDict and plain['b']._metadata == value['b']._metadata
    assert plain['b'].keys() == value['b'].keys() and all(plain['b'][key] is value['b'][key] for key in value['b'])
    changed = to_plain(OrderedDict(b=model.state_dict(), c=np.float64(1)))
    assert changed['b']._metadata['']['version'] == 2
    state = model.state_dict()
    state['extra'] = np.float64(1)
    assert to_plain(state)._metadata['']['version'] == 2


def test_a_log_comes_back_as_it_was():
    """Bug: counts, the length limit or whole numbers that a log loses on the way; a second hook that empties it."""
    buffers = {
        'a': HistoryBuffer([1, 2, 3], [1, 2, 1], max_length=3),
        'b': HistoryBuffer([0.1, float('nan')], [1, 1]),
        'c': HistoryBuffer(),
    }
    hub = {'log_scalars': OrderedDict(buffers), 'runtime_info': {'d': 1}, 'resumed_keys': dict.fromkeys('abcd', True)}
    checkpoint = {'message_hub': hub}
    assert make_plain(checkpoint) == {} and make_plain(checkpoint) == {}
    assert foreign(checkpoint) == [] and checkpoint['message_hub']['resumed_keys'] == {'d': True}
    restore_log(checkpoint)
    restore_log(checkpoint)
    restored = checkpoint['message_hub']
    assert restored['resumed_keys'] == hub['resumed_keys'] and restored.keys() == hub.keys()
    for name, buffer in buffers.items():
        assert restored['log_scalars'][name].max_length == buffer.max_length
        for mine, other in zip(restored['log_scalars'][name].data, buffer.data, strict=True):
            np.testing.assert_array_equal(mine, other, strict=True)
