"""Attention in C++ against the formula in float64, and against what it stands in for."""

import math
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from test_cosine_attention import formula, problem
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models import native_attention
from swinv2_mm.models.cosine_attention import cosine_attention
from swinv2_mm.models.window import WindowGroup

needs_native = pytest.mark.skipif(
    native_attention.library() is None, reason='no AVX-512, or not compiled: see test_it_is_compiled_where_it_can_be')


def test_it_is_compiled_where_it_can_be():
    """Prevents: a build that fails in silence, since setuptools takes an optional extension's failure for a warning."""
    can = shutil.which('c++') and torch.backends.cpu.get_cpu_capability().startswith('AVX512') \
        and sys.platform == 'linux'
    assert (native_attention.library() is not None) == bool(can)


def in_type(dtype, exact):
    """The problem's tensors rounded to the type of a map, and the rounded problem in float64."""
    qkv, scale, table = (t.detach() for t in exact)
    given = [qkv.to(dtype), scale.float(), table.float()]
    return given, [t.double().requires_grad_() for t in given]


@needs_native
@pytest.mark.parametrize('dtype, bound', [(torch.float32, 3e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize('size, window', [
    ((5, 7), (2, 3)),        # fewer slots than a vector
    ((25, 42), (7, 7)),      # 49 slots: rows and columns beyond every block
    ((33, 17), (8, 8)),
    ((16, 31), (5, 16)),     # 80 slots: one vector beyond a block of four
    ((30, 33), (16, 16)),    # several blocks of rows
    ((37, 47), (19, 24)),
])
def test_values_and_gradients(size, window, dtype, bound):
    """Of shifted, padded maps, relative to the largest. Prevents: wrong tails, masks, offsets, rounding."""
    exact, groups = problem(size=size, window=window, nH=3, d=32)
    given, exact = in_type(dtype, exact)
    assert native_attention.takes(*given)
    grad = torch.randn(given[0].shape[0], given[0].shape[1], 3, 32).to(dtype)
    expected = formula(*exact, groups)
    y = native_attention.forward(*given, groups)
    assert y.dtype == dtype and (y - expected).abs().max() <= bound * expected.abs().max()
    found = native_attention.backward(grad, *given, groups)
    for a, b in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (a - b).abs().max() <= bound * b.abs().max()


@needs_native
@pytest.mark.parametrize('threads', [1, 2, 3, 50])
def test_however_many_threads(threads):
    """More than there are windows, too. Prevents: heads that two threads share and one of them forgets."""
    exact, groups = problem(size=(5, 7), window=(4, 4), nH=3, d=32)
    given, exact = in_type(torch.float32, exact)
    grad = torch.randn_like(formula(*exact, groups))
    expected = torch.autograd.grad(formula(*exact, groups), exact, grad)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = [native_attention.backward(grad.float(), *given, groups) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for a, b, again in zip(found[0], expected, found[1], strict=True):
        assert torch.equal(a, again)
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@needs_native
def test_numbers_that_are_not_finite_spread_as_far_as_they_would():
    """To all of their window, and to no other. Prevents: a NaN that is lost in a maximum, so that nobody finds it."""
    given, _ = in_type(torch.float32, problem(size=(32, 32), window=(8, 8), nH=2, d=32)[0])
    groups = (WindowGroup(0, len(given[0]), None),)
    for which in range(3):
        broken = given[0].clone()
        broken[3, 5, which, 1, 7] = math.nan
        y = native_attention.forward(broken, *given[1:], groups)
        qkv_grad = native_attention.backward(torch.ones_like(y), broken, *given[1:], groups)[0]
        ours = torch.isnan(y).flatten(2).any(2).any(1)
        assert ours.nonzero().flatten().tolist() == [3]
        assert torch.isnan(qkv_grad).flatten(1).any(1).nonzero().flatten().tolist() == [3]
        assert not torch.isnan(y[:, :, 0]).any()


@needs_native
def test_tokens_without_a_direction_and_the_largest_scale():
    """Prevents: 0 / 0, and a gradient along nothing; logits of 116 that overflow."""
    given, _ = in_type(torch.float32, problem(size=(32, 32), window=(8, 8), nH=2, d=32)[0])
    given[0][0] = 0
    given[0][1, 0] *= 1e-9
    given[1][:] = 100
    groups = (WindowGroup(0, len(given[0]), None),)
    y = native_attention.forward(given[0], given[1], given[2] + 16, groups)
    found = native_attention.backward(torch.ones_like(y), given[0], given[1], given[2] + 16, groups)
    assert y.isfinite().all() and all(tensor.isfinite().all() for tensor in found)
    assert not found[0][0, :, :2].any() and not found[0][1, 0, :2].any()


@needs_native
def test_what_it_does_not_take():
    """Prevents: float64 computed in float32, other heads read beyond their end, operations that a counter misses."""
    given, _ = in_type(torch.float32, problem(size=(32, 32), window=(8, 8), nH=2, d=32)[0])
    assert native_attention.takes(*given)
    assert not native_attention.takes(*(t.double() for t in given))
    assert not native_attention.takes(given[0][..., :16], *given[1:])
    assert not native_attention.takes(given[0].to('meta'), *given[1:])
    assert not native_attention.takes(torch.empty(1, 33 * 33, 3, 2, 32), *given[1:])
    with FlopCounterMode(display=False):
        assert not native_attention.takes(*given)


@needs_native
@pytest.mark.parametrize('mode', ['training', 'evaluation'])
def test_the_backbone_takes_it(mode, randomize, monkeypatch):
    """With the result of torch's operations. Prevents: a backbone that goes by a slower way, unnoticed."""
    model = randomize(SwinTransformerV2(embed_dims=32, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1),
                                        window_size=[7, 4], drop_path_rate=0.0)).train(mode == 'training')
    x = torch.rand(2, 3, 97, 45)
    calls = []
    forward = native_attention.forward
    monkeypatch.setattr(native_attention, 'forward', lambda *given: calls.append(1) or forward(*given))
    with torch.set_grad_enabled(mode == 'training'):
        maps = model(x)
        assert len(calls) == 4
        monkeypatch.setattr(native_attention, 'library', lambda: None)
        expected = model(x)
    assert len(calls) == 4
    for a, b in zip(maps, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@needs_native
def test_without_the_library_torch_computes_the_same(monkeypatch):
    """Prevents: machines without a compiler or without AVX-512 that train something else."""
    exact, groups = problem(size=(25, 42), window=(8, 8), nH=3, d=32)
    given = [t.requires_grad_() for t in in_type(torch.float32, exact)[0]]
    grad = torch.randn(len(given[0]), 64, 3, 32)
    y = cosine_attention(*given, groups, None)
    found = torch.autograd.grad(y, given, grad)
    monkeypatch.setattr(native_attention, 'library', lambda: None)
    torch.testing.assert_close(cosine_attention(*given, groups, None), y, rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(cosine_attention(*given, groups, None), given, grad), found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@needs_native
def test_it_brings_no_threads_of_its_own():
    """Prevents: a second OpenMP, whose waiting threads take the cores from torch's: everything is ten times slower."""
    path = Path(native_attention.library()._name)
    assert path.name.endswith(sysconfig.get_config_var('EXT_SUFFIX'))
    needed = subprocess.run(['ldd', path], capture_output=True, text=True, check=True).stdout
    assert 'libc.so' in needed and 'omp' not in needed
