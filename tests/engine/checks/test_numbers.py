"""Numbers out of range are refused before a run."""

import math

import pytest
from mmengine.config import Config

from swinv2_mm.engine.checks.numbers import check_numbers
from swinv2_mm.errors import UserError


def test_an_infinite_norm_passes_and_nan_does_not():
    """Bug: max_norm=inf, by which the norm of the gradients is logged and nothing clipped, is refused."""
    check_numbers(Config(dict(optim_wrapper=dict(clip_grad=dict(max_norm=math.inf)))))
    with pytest.raises(UserError, match='max_norm=nan'):
        check_numbers(Config(dict(optim_wrapper=dict(clip_grad=dict(max_norm=math.nan)))))
