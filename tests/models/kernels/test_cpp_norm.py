"""Norm, stochastic depth and residual in C++ against torch's operations in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from swinv2_mm.models import layers
from swinv2_mm.models.kernels import choose, cpp_token_passes
from swinv2_mm.models.kernels.cpp_token_passes import add_normalised


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 3e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize('shape', [(2, 5, 7, 96), (3, 1, 1, 44), (1, 9, 4, 5), (2, 3, 3, 768)])
@pytest.mark.parametrize('scaled', [True, False])
def test_values_and_gradients_are_those_of_float64(shape, scaled, dtype, bound, instruction_set):
    """Far from zero, too. Prevents: a variance of large numbers, rows that end inside a vector, others' scales."""
    torch.manual_seed(0)
    B, C = shape[0], shape[-1]
    norm = nn.LayerNorm(C)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, branch, grad = (torch.randn(shape).to(dtype) for _ in range(3))
    branch += 5
    scales = torch.rand(B) * 2 if scaled else None
    given = [x.requires_grad_(), branch.requires_grad_(), norm.weight, norm.bias]
    exact = [t.detach().double().requires_grad_() for t in given]
    by = scales.double().view(-1, 1, 1, 1) if scaled else 1
    expected = exact[0] + by * F.layer_norm(exact[1], (C,), *exact[2:], norm.eps)
    assert choose.norm_by_cpp(norm, x, branch)
    out = add_normalised(norm, x, branch, scales)
    assert out.dtype == dtype and (out - expected).abs().max() <= bound * expected.abs().max()
    for a, b in zip(
        torch.autograd.grad(out, given, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        assert (a - b).abs().max() <= bound * max(b.abs().max(), 1)


def test_a_nan_stays_with_its_token(instruction_set):
    """Prevents: a NaN that gets lost, or spreads to others."""
    norm, x, branch = nn.LayerNorm(20), torch.randn(1, 3, 3, 20), torch.randn(1, 3, 3, 20)
    branch[0, 1, 2, 7] = float('nan')
    broken = add_normalised(norm, x, branch, None).isnan()
    assert broken[0, 1, 2].all() and broken.sum() == 20


@pytest.mark.parametrize(
    'change',
    [
        lambda norm, path: norm.register_forward_hook(lambda *_: None),
        lambda norm, path: path.register_forward_pre_hook(lambda *_: None),
        lambda norm, path: norm.__setattr__('forward', lambda branch: branch * 2),
        lambda norm, path: norm.__setattr__('bias', None),
    ],
    ids=['hook', 'hook of the path', 'another forward', 'no bias'],
)
def test_layers_that_are_not_what_was_built_are_called(change, monkeypatch, instruction_set):
    """Prevents: a hook that never fires, or a norm that is passed over."""
    norm, path, x = nn.LayerNorm(20), layers.DropPath(0.5).eval(), torch.randn(2, 3, 3, 20)
    calls, own = [], add_normalised
    monkeypatch.setattr(cpp_token_passes, 'add_normalised', lambda *given: calls.append(1) or own(*given))
    torch.testing.assert_close(layers.add_branch(x, x, norm, path), path(x, norm(x)))
    assert len(calls) == 1
    change(norm, path)
    torch.testing.assert_close(layers.add_branch(x, x, norm, path), path(x, norm(x)))
    assert len(calls) == 1
