"""One written data set, which the tests of this folder read."""

from pathlib import Path

import pytest
from support.tiny_shapes import SPEC

from swinv2_mm.datasets import write_shapes


@pytest.fixture(scope='session')
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('shapes') / 'set'
    assert write_shapes(SPEC, out)
    return out
