"""Linear layers and the MLP on pieces of the tokens are the layers as they are written."""

import pytest
import torch
import torch.nn.functional as F
from support.largest_tensor import Largest
from support.versions import needs_float16, needs_flops
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm.models.kernels import linear


def written_out(x, w1, b1, w2, b2):
    return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)


def random_layer(tokens, channels, dtype=torch.float32, hidden=None):
    torch.manual_seed(0)
    hidden = hidden or 4 * channels
    shapes = [(*tokens, channels), (hidden, channels), (hidden,), (channels, hidden), (channels,)]
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(linear, 'MIN_TOKENS', 3)
    monkeypatch.setattr(linear, 'PIECE_BYTES', 1)
    monkeypatch.setattr(linear, 'KEPT_BYTES', 1)


def test_gradients_by_finite_differences(small_pieces):
    """In float64, over several pieces. Prevents: a piece left out of a sum, or the derivative of another GELU."""
    x, *layers = random_layer((2, 5), 4, torch.float64)
    assert torch.autograd.gradcheck(linear.mlp, (x, *layers))
    assert torch.autograd.gradcheck(linear.linear, (x, *layers[:2]))
    assert torch.autograd.gradcheck(lambda *given: linear.linear(*given), (x, layers[0]))


@pytest.mark.parametrize('tokens', [(1,), (7,), (2, 3, 5), (3000,)])
@pytest.mark.parametrize('channels', [1, 6, 32, 400])  # beyond 384 sums are cut
def test_float32_is_as_exact_as_the_formula(tokens, channels):
    """Against float64, values and gradients to 1e-5 of the largest. Prevents: a product in lower precision."""
    given = random_layer(tokens, channels)
    exact = [t.detach().double().requires_grad_() for t in given]
    for ours, formula, count in ((linear.mlp, written_out, 5), (linear.linear, F.linear, 3)):
        y, expected = ours(*given[:count]), formula(*exact[:count])
        grad = torch.randn(expected.shape, dtype=torch.float64)
        found = [y, *torch.autograd.grad(y, given[:count], grad.float())]
        wanted = [expected, *torch.autograd.grad(expected, exact[:count], grad)]
        for a, b in zip(found, wanted, strict=True):
            assert a.dtype == torch.float32 and a.shape == b.shape
            assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@needs_flops
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_only_what_is_wanted_gets_a_gradient(dtype, small_pieces):
    """Frozen weights, an input without gradient. Prevents: a frozen layer that costs its backward pass, or fails."""
    x, w1, b1, w2, b2 = random_layer((8,), 4, dtype)
    w1.requires_grad_(False)
    x.requires_grad_(False)
    loss = linear.mlp(x, w1, b1, w2, b2).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    assert x.grad is None and w1.grad is None
    assert counter.get_total_flops() == 2 * 2 * x.numel() * len(w1)  # of w2, and of the hidden layer for b1
    expected = torch.autograd.grad(written_out(x, w1, b1, w2, b2).sum(), (b1, w2, b2))
    for parameter, grad in zip((b1, w2, b2), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_nothing_is_kept_without_gradients(monkeypatch):
    """No tensor is larger than the result. Prevents: the hidden layer of a whole image in evaluation."""
    x, *layers = random_layer((5000,), 8)
    monkeypatch.setattr(linear, 'PIECE_BYTES', 1)
    with torch.no_grad(), Largest() as largest:
        y = linear.mlp(x, *layers)
    assert largest.numel == y.numel() > linear.MIN_TOKENS * 32
    torch.testing.assert_close(y, written_out(x, *layers), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_float16)])
def test_autocast_computes_in_its_type(dtype, small_pieces):
    """Weight gradients stay in float32. Prevents: sums over pieces that lose what bfloat16 rounds away."""
    x, *layers = random_layer((4000,), 8)
    with torch.autocast('cpu', dtype):
        y = linear.mlp(x * 0.1, *layers)
    assert y.dtype == dtype
    y.float().sum().backward()
    expected = torch.autograd.grad(written_out(x * 0.1, *layers).sum(), layers)
    for parameter, grad in zip(layers, expected, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - grad).abs().max() <= 0.02 * grad.abs().max()


def test_a_graph_that_is_recorded_holds_the_formula():
    """Prevents: an exported or compiled graph cut into the pieces of one image size."""
    x, *layers = random_layer((5000,), 4)
    traced = torch.jit.trace(lambda *given: linear.mlp(*given), (x, *layers))
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count('aten::linear') == 2 and 'aten::slice' not in kinds
