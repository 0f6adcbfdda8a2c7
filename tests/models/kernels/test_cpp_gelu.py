"""Bias and GELU in C++ against torch's operations in float64."""

import pytest
import torch
import torch.nn.functional as F

from swinv2_mm.models.kernels import choose, linear
from swinv2_mm.models.kernels.cpp_token_passes import gelu, gelu_backward


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 4e-7), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize('shape', [(7, 5), (64, 96), (33, 100), (1, 1)])
@pytest.mark.parametrize('biased', [True, False])
def test_values_and_gradients_are_those_of_float64(shape, biased, dtype, bound, instruction_set):
    """From -20 to 20, where a tail is nothing. Prevents: rows that end in the middle of a vector, a bias of others."""
    torch.manual_seed(0)
    hidden, grad = (torch.randn(shape) * 6).to(dtype), torch.randn(shape).to(dtype)
    bias = torch.randn(shape[1]).to(dtype) if biased else None
    exact = (hidden.double() + (bias.double() if biased else 0)).requires_grad_()
    expected = F.gelu(exact)
    (expected_grad,) = torch.autograd.grad(expected, exact, grad.double())
    assert choose.gelu_by_cpp(hidden)
    out = gelu(hidden, bias, torch.empty_like(hidden))
    again = gelu_backward(hidden, bias, grad, torch.empty_like(hidden))
    assert torch.equal(out, again)
    assert ((out - expected).abs() <= bound * (1 + exact.abs())).all()
    assert ((grad - expected_grad).abs() <= 2 * bound * (1 + expected_grad.abs())).all()
    assert torch.equal(gelu(hidden, bias, hidden), out)  # in place


def test_nan_and_infinity_come_out_as_in_float64(instruction_set):
    """As float64 has it. Prevents: a NaN that a comparison turns into a number, so that nobody finds it."""
    x = torch.tensor([[float('nan'), float('inf'), -float('inf'), 0.0, -0.0, 1e-30, 1e4, -1e4]])
    found = gelu(x, None, torch.empty_like(x))
    torch.testing.assert_close(found.double(), F.gelu(x.double()), equal_nan=True, rtol=1e-6, atol=0)


@pytest.mark.parametrize('by_onednn', [True, False])
def test_the_bias_of_an_mlp_is_added_once(by_onednn, monkeypatch, instruction_set):
    """By either library of products, in pieces. Prevents: a bias that is added twice, or never, on other processors."""
    monkeypatch.setattr(choose, 'is_by_onednn', lambda x: by_onednn)
    monkeypatch.setattr(linear, 'MIN_TOKENS', 16)
    monkeypatch.setattr(linear, 'PIECE_BYTES', 1)
    monkeypatch.setattr(linear, 'KEPT_BYTES', 1)
    torch.manual_seed(0)
    given = [torch.randn(shape, requires_grad=True) for shape in ((50, 24), (96, 24), (96,), (24, 96), (24,))]
    exact = [t.detach().double().requires_grad_() for t in given]
    x, w1, b1, w2, b2 = exact
    expected = F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    y = linear.mlp(*given)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(linear.mlp(*given), y, rtol=1e-6, atol=1e-5)
    grad = torch.randn(50, 24)
    for a, b in zip(
        torch.autograd.grad(y, given, grad), torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


def test_what_would_be_read_beyond_its_end_is_refused(instruction_set):
    """Prevents: memory of others that is overwritten, which shows up anywhere, or nowhere."""
    hidden, half = torch.randn(8, 16), torch.randn(8, 16).bfloat16()
    for given in (
        (hidden, None, half),
        (hidden, half[0], hidden),
        (hidden, hidden[:, 0], hidden),
        (hidden, None, torch.randn(16, 8).t()),
        (hidden, None, hidden[:4]),
    ):
        with pytest.raises(TypeError, match='expects a contiguous'):
            gelu(*given)
    with pytest.raises(TypeError, match='bfloat16'):
        gelu_backward(hidden, None, half, hidden)
