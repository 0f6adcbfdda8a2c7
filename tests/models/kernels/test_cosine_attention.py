"""Window attention with a backward pass of its own, against the formula and finite differences."""

import math

import pytest
import torch
from support.largest_tensor import Largest
from support.versions import needs_float16
from support.window_formula import formula

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.kernels import cosine_attention as module
from swinv2_mm.models.kernels.cosine_attention import cosine_attention
from swinv2_mm.models.position_bias import spread_over_slots
from swinv2_mm.models.window import WindowGroup, window_layout


def problem(dtype=torch.float64, size=(5, 7), window=(2, 3), nH=2, d=3, seed=0):
    """Windows of a shifted, padded map: several masks."""
    torch.manual_seed(seed)
    groups = window_layout(1, *size, window, True, torch.device('cpu')).groups
    assert len(groups) > 2
    qkv = torch.randn(groups[-1].stop, math.prod(window), 3, nH, d, dtype=dtype)
    scale = torch.rand(nH, 1, 1, dtype=dtype) * 5
    table = torch.randn(nH, 2 * window[0] - 1, 2 * window[1] - 1, dtype=dtype)
    return [t.requires_grad_() for t in (qkv, scale, table)], groups


@pytest.mark.parametrize('chunk', [None, 1, 2, 'auto'])
@pytest.mark.parametrize('budget', ['whole', 'by rows', 'by heads'])
def test_values_and_gradients_are_those_of_the_formula(chunk, budget, monkeypatch):
    """However the work is cut. Prevents: a part under another's mask, or left out of the sum of a gradient."""
    if budget == 'by rows':
        monkeypatch.setattr(module, 'BIAS_BYTES', 1)
    if budget == 'by heads':
        monkeypatch.setattr(module, 'CACHE_BYTES', 1)
    given, groups = problem()
    torch.testing.assert_close(cosine_attention(*given, groups, chunk), formula(*given, groups), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *tensors: cosine_attention(*tensors, groups, chunk), given, fast_mode=True)


@pytest.mark.parametrize('budget', ['whole', 'by rows'])
def test_float32_gradients_against_float64(budget, monkeypatch):
    """To 1e-5 of the largest, at the sizes of a real model. Prevents: sums over windows that lose small terms."""
    if budget == 'by rows':
        monkeypatch.setattr(module, 'BIAS_BYTES', 10000)
    exact, groups = problem(size=(25, 42), window=(8, 8), nH=3, d=32)
    given = [t.detach().float().requires_grad_() for t in exact]
    y, expected = cosine_attention(*given, groups, None), formula(*exact, groups)
    grad = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(y, given, grad.float()), torch.autograd.grad(expected, exact, grad), strict=True
    ):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_no_tensor_has_the_square_of_a_large_window(monkeypatch):
    """Forward and backward, masked windows too, where a window's bias is beyond its budget.

    Prevents: memory that grows with the fourth power of the window's side.
    """
    monkeypatch.setattr(module, 'BIAS_BYTES', 1)
    given, groups = problem(torch.float32, size=(20, 20), window=(16, 16), nH=2, d=4)
    groups = [WindowGroup(0, 1, groups[-1].regions)]
    given[0] = given[0].detach()[:1].requires_grad_()
    with Largest() as largest:
        cosine_attention(*given, groups, None).sum().backward()
    assert 0 < largest.numel <= 2 * 16 * 256 < 256 * 256
    monkeypatch.undo()
    with Largest() as largest:
        cosine_attention(*given, groups, None)
    assert largest.numel >= 256 * 256


def test_one_part_of_the_rows_is_the_part_of_the_whole():
    """Prevents: the bias of other queries, where a window's rows are computed in parts."""
    table = torch.rand(3, 7, 9)
    whole = spread_over_slots(table)
    assert whole.shape == (3, 20, 20)
    for first, last in ((0, 5), (5, 15), (15, 20)):
        assert torch.equal(spread_over_slots(table, first, last), whole[:, first:last])


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_float16)])
def test_zero_tokens_and_the_largest_scale_stay_finite(dtype):
    """Prevents: NaN from 0 / 0 or 0 * inf, or logits of 116 that overflow."""
    (qkv, _, table), groups = problem(torch.float32)
    qkv = qkv.detach().to(dtype)
    qkv[0] = 0
    qkv[1, 0] *= 1e-3
    qkv.requires_grad_()
    scale = torch.full((2, 1, 1), 100.0, requires_grad=True)
    y = cosine_attention(qkv, scale, table + 16, groups, None)
    y.float().square().sum().backward()
    assert y.isfinite().all() and qkv.grad.isfinite().all() and scale.grad.isfinite().all()
    assert not qkv.grad[0, :, :2].any()


@pytest.mark.parametrize('mask_padding', [True, False])
@pytest.mark.parametrize('size', [(1, 1), (31, 90), (64, 64), (97, 45)])
def test_evaluation_is_the_forward_pass_of_training(size, mask_padding, randomize, monkeypatch):
    """In float64, several images, an MLP in small pieces. Prevents: a piece left out, a kept bias of another window."""
    from swinv2_mm.models.kernels import linear

    model = randomize(
        SwinTransformerV2(
            embed_dims=8,
            depths=(2, 2),
            num_heads=(1, 2),
            out_indices=(0, 1),
            window_size=[(3, 5), 4],
            mask_padding=mask_padding,
            drop_path_rate=0.0,
        )
    ).double()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    expected = model.train()(x)
    monkeypatch.setattr(linear, 'MIN_TOKENS', 50)
    monkeypatch.setattr(linear, 'PIECE_BYTES', 1)
    with torch.no_grad():
        maps = model.eval()(x)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)
