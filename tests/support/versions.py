"""Tests of what older versions of torch lack."""

from importlib.util import find_spec

import pytest

from swinv2_mm.compat import COMPILES, VERSION

needs_compiler = pytest.mark.skipif(not COMPILES, reason='torch.compile leaves the backbone as it is before torch 2.6')
needs_flops = pytest.mark.skipif(
    VERSION < (2, 6), reason="torch's counter does not know oneDNN's linear layer before torch 2.6"
)
needs_float16 = pytest.mark.skipif(VERSION < (2, 3), reason='torch computes float16 on CPUs from 2.3 on')
needs_safe_globals = pytest.mark.skipif(VERSION < (2, 6), reason='torch has no list of allowed globals before 2.6')


def needs(package):
    """Skip where a framework is not installed, as in the quick runs of tests/environments.py."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f'{package} is not installed')
