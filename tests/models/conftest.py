"""The fixtures of the model tests: each instruction set of this processor, and a tiny backbone."""

import pytest
from support.tiny_layers import TINY

from swinv2_mm import SwinTransformerV2
from swinv2_mm.compat import VERSION
from swinv2_mm.models.kernels import cpp


@pytest.fixture(params=cpp.instruction_sets())
def instruction_set(request, monkeypatch):
    """Each instruction set of this processor, not only the widest, which is the one in use."""
    found = cpp.compiled_for(request.param)
    if found is None:
        pytest.skip('not compiled: see test_it_is_compiled_where_it_can_be')
    monkeypatch.setattr(cpp, 'library', lambda: found)
    return request.param


@pytest.fixture
def build(randomize):
    """Build a tiny backbone with options; its random values hide no error, and are the same each time."""
    return lambda **options: randomize(SwinTransformerV2(**TINY | options))


# torch.export of older versions has no Dim.AUTO, and other names for what the tests look at.
collect_ignore = ['test_exports.py'] if VERSION < (2, 6) else []
