"""What every test shares: two threads, a fixed seed, and weights that hide nothing."""

import os
import time

import pytest
import torch

if not torch.cuda.is_available():  # read when Triton is imported, which any test may do first
    os.environ['TRITON_INTERPRET'] = '1'

pytest.register_assert_rewrite('support')  # whose assertions then show their values, too

from support.tiny_fixtures import fork_server, mmengine_trained, own_process, run_tool, trained  # noqa: E402, F401


def pytest_runtest_setup(item):
    """`make gpu` has ten minutes, and names what does not fit."""
    if time.time() > float(os.environ.get('SWINV2_MM_TESTS_UNTIL', 'inf')):
        pytest.skip('no time left')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def randomize():
    """Give every parameter a random value: a fresh block is the identity and would hide any error inside it."""

    def apply(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                if name.endswith('logit_scale'):
                    noise = 1 + 2 * noise  # on both sides of the clamp at log(100) = 4.6
                elif 'norm' in name and name.endswith('weight'):
                    noise = 1 + 0.3 * noise
                elif parameter.ndim > 1:
                    noise = noise * parameter[0].numel() ** -0.5
                else:
                    noise = 0.1 * noise
                parameter.copy_(noise)
        return model

    return apply
