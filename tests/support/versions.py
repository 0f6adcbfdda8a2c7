"""Tests of what older versions of torch lack."""

import pytest

from swinv2_mm.compat import COMPILES, VERSION

needs_compiler = pytest.mark.skipif(not COMPILES, reason='torch.compile leaves the backbone as it is before torch 2.4')
needs_flops = pytest.mark.skipif(VERSION < (2, 2), reason="torch's counter knows no new operations before torch 2.2")
needs_float16 = pytest.mark.skipif(VERSION < (2, 3), reason='torch computes float16 on CPUs from 2.3 on')
