"""The fixture that runs a test of the C++ for each instruction set of this processor."""

import pytest

from swinv2_mm.models.kernels import cpp


@pytest.fixture(params=cpp.instruction_sets())
def instruction_set(request, monkeypatch):
    """Each instruction set of this processor, not only the widest, which is the one in use."""
    found = cpp.compiled_for(request.param)
    if found is None:
        pytest.skip('not compiled: see test_it_is_compiled_where_it_can_be')
    monkeypatch.setattr(cpp, 'library', lambda: found)
    return request.param
