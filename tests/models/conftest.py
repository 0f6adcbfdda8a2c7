"""What tests of the C++ share."""

import pytest

from swinv2_mm.models.kernels import cpp, cpp_attention, cpp_gelu, cpp_norm


@pytest.fixture(params=cpp.instruction_sets())
def instruction_set(request, monkeypatch):
    """Each that this processor has, not only the widest, which is all that users of this machine would see."""
    found = cpp.compiled_for(request.param)
    if found is None:
        pytest.skip('not compiled: see test_it_is_compiled_where_it_can_be')
    for module in (cpp_attention, cpp_gelu, cpp_norm):
        monkeypatch.setattr(module, 'library', lambda: found)
    return request.param
