"""Attention in C++ against the formula in float64, and against what it stands in for."""

import math
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from support.window_formula import on_windows, problem
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.kernels import attention_op, choose, cpp, cpp_attention
from swinv2_mm.models.kernels.attention_op import Options, attention_on_map
from swinv2_mm.models.position_bias import window_of

needs_native = pytest.mark.skipif(cpp.library() is None, reason='not compiled: see test_it_is_compiled_where_it_can_be')


def test_it_is_compiled_where_it_can_be():
    """Prevents: a build that fails in silence, since setuptools takes an optional extension's failure for a warning."""
    sets = cpp.instruction_sets()
    compiled = [cpp.compiled_for(name) is not None for name in sets]
    assert compiled == [bool(shutil.which('c++')) and sys.platform == 'linux'] * len(sets)
    assert (cpp.library() is not None) == any(compiled)


def test_torchs_word_on_the_instruction_set_holds():
    """In a process of its own. Prevents: AVX-512 on processors without, where the first attention kills the process."""
    code = (
        'from swinv2_mm.models.kernels import cpp as n; print(n.instruction_sets(), '
        "n.library() is n.compiled_for('avx2'))"
    )
    if 'avx2' not in cpp.instruction_sets():
        pytest.skip('this processor has no AVX2: there is nothing to choose from')
    found = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, env={'ATEN_CPU_CAPABILITY': 'avx2'}
    )
    assert found.stdout == "('avx2',) True\n"


def takes(qkv, bias, scale, table):
    return choose.attention_by_cpp('auto', qkv, qkv.shape[5], window_of(table), scale.dtype, table.dtype)


def in_type(dtype, tensors):
    """The problem's tensors rounded to the type of a map, and the rounded problem in float64."""
    qkv, *others = tensors
    given = [qkv.to(dtype), *(t.float() for t in others)]
    return given, [t.double().requires_grad_() for t in given]


@pytest.mark.parametrize('dtype, bound', [(torch.float32, 3e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
@pytest.mark.parametrize('shifted', [True, False])
@pytest.mark.parametrize(
    'B, size, window',
    [
        (2, (5, 7), (2, 3)),  # fewer slots than a vector
        (1, (25, 42), (7, 7)),  # 49 slots: rows and columns beyond every block
        (3, (33, 17), (8, 8)),
        (1, (16, 31), (5, 16)),  # 80 slots: one vector beyond a block of four
        (2, (30, 33), (16, 16)),  # several blocks of rows
        (1, (37, 47), (19, 24)),
        (1, (8, 8), (8, 8)),  # one window
        (2, (1, 1), (1, 1)),
    ],
)
def test_values_and_gradients_are_those_of_float64(B, size, window, shifted, dtype, bound, instruction_set):
    """Of padded maps, relative to the largest. Prevents: wrong tokens, tails, masks, offsets, rounding."""
    given, exact = in_type(dtype, problem(B=B, size=size, window=window, nH=3))
    assert takes(*given)
    expected = on_windows(*exact, shifted)
    grad = torch.randn(expected.shape).to(dtype)
    y = cpp_attention.forward(*given, shifted)
    assert y.dtype == dtype and (y - expected).abs().max() <= bound * expected.abs().max()
    found = cpp_attention.backward(grad, *given, shifted)
    for a, b in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (a - b).abs().max() <= bound * max(b.abs().max(), 1)  # a sum may cancel


@pytest.mark.parametrize('d', [4, 8, 16, 24, 44, 48, 64])
def test_heads_of_any_width_read_their_own_channels(d, instruction_set):
    """MMPretrain's huge size has 44. Prevents: channels of the next head that are read, or written, with one's own."""
    given, exact = in_type(torch.float32, problem(size=(11, 13), window=(4, 4), nH=3, d=d))
    grad, expected = torch.randn(1, 11, 13, 3, d), on_windows(*exact, True)
    assert (cpp_attention.forward(*given, True) - expected).abs().max() <= 3e-6 * expected.abs().max()
    found = cpp_attention.backward(grad, *given, True)
    for a, b in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (a - b).abs().max() <= 3e-6 * max(b.abs().max(), 1)


@pytest.mark.parametrize('nH', [1, 5, 20])
def test_heads_take_turns_in_all_numbers(nH, monkeypatch, instruction_set):
    """More heads than take turns, and a rest of them. Prevents: a bias of another head, gradients that get lost."""
    given, exact = in_type(torch.float32, problem(size=(19, 23), window=(8, 8), nH=nH))
    grad, expected = torch.randn(1, 19, 23, nH, 32), on_windows(*exact, True)
    found = cpp_attention.backward(grad, *given, True)
    for a, b in zip(found, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        assert (a - b).abs().max() <= 3e-6 * b.abs().max()


def test_every_float16_survives_the_conversion(instruction_set):
    """Copied by a window of one slot, whose value is its result: subnormal and infinite numbers, too.

    Prevents: conversions of our own that lose the smallest numbers, or make finite ones of infinity.
    """
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    for dtype in (torch.float16, torch.bfloat16):
        numbers = every if dtype == torch.float16 else every.view(torch.bfloat16)
        qkv = torch.ones(1, 64, 32, 3, 1, 32, dtype=dtype)
        qkv[:, :, :, 2] = numbers.view(1, 64, 32, 1, 32)
        out = cpp_attention.forward(qkv, None, torch.ones(1, 1, 1), torch.zeros(1, 1, 1), False)
        assert torch.equal(out.flatten().isnan(), numbers.isnan())
        real = ~numbers.isnan()
        assert torch.equal(out.flatten()[real], numbers[real])


@pytest.mark.parametrize('threads', [1, 2, 3, 50])
def test_any_number_of_threads_computes_the_same(threads, instruction_set):
    """More than there are windows, too. Prevents: heads that two threads share and one of them forgets."""
    given, exact = in_type(torch.float32, problem(size=(5, 7), window=(4, 4), nH=3))
    y = on_windows(*exact, True)
    grad = torch.randn_like(y)
    expected = torch.autograd.grad(y, exact, grad)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = [cpp_attention.backward(grad.float(), *given, True) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    for a, b, again in zip(found[0], expected, found[1], strict=True):
        assert torch.equal(a, again)
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_numbers_that_are_not_finite_spread_as_far_as_they_would(instruction_set):
    """To all of their window, and to no other. Prevents: a NaN that is lost in a maximum, so that nobody finds it."""
    given = in_type(torch.float32, problem(size=(32, 32), window=(8, 8), nH=2))[0]
    own = torch.zeros(32, 32, dtype=torch.bool)
    own[8:16, 16:24] = True
    for which in range(3):
        broken = given[0].clone()
        broken[0, 9, 18, which, 1, 7] = math.nan
        y = cpp_attention.forward(broken, *given[1:], False)
        qkv_grad = cpp_attention.backward(torch.ones_like(y), broken, *given[1:], False)[0]
        found = torch.isnan(y[0]).flatten(2).any(2)
        assert found.any() and not found[~own].any() and (which == 0 or found[own].all())
        assert torch.isnan(qkv_grad[0]).flatten(2).any(2)[own].all()
        assert not torch.isnan(qkv_grad[0])[~own].any()
        assert not torch.isnan(y[..., 0, :]).any()


def test_tokens_without_a_direction_and_the_largest_scale(instruction_set):
    """Prevents: 0 / 0, and a gradient along nothing; logits of 116 that overflow."""
    given = in_type(torch.float32, problem(size=(32, 32), window=(8, 8), nH=2))[0]
    given[1] = None
    given[0][0, :8, :8] = 0
    given[0][0, 8, 8] *= 1e-9
    given[2][:] = 100
    given[3] += 16
    y = cpp_attention.forward(*given, False)
    found = cpp_attention.backward(torch.ones_like(y), *given, False)
    assert found[1] is None
    assert y.isfinite().all() and all(tensor.isfinite().all() for tensor in found if tensor is not None)
    assert not found[0][0, :8, :8, :2].any() and not found[0][0, 8, 8, :2].any()


@needs_native
def test_it_refuses_what_it_cannot_compute():
    """Prevents: float64 computed in float32, heads read beyond their end, operations that a counter misses."""
    given = in_type(torch.float32, problem(size=(32, 32), window=(8, 8), nH=2))[0]
    assert takes(*given)
    assert not takes(*(t.double() for t in given))
    assert not takes(torch.empty(1, 8, 8, 3, 1, 65), *given[1:])
    assert not takes(given[0].to('meta'), *given[1:])
    assert not takes(*given[:3], torch.empty(2, 65, 65))
    with FlopCounterMode(display=False):
        assert not takes(*given)


@pytest.mark.parametrize('mode', ['training', 'evaluation'])
@pytest.mark.parametrize('mask_padding', [True, False])
def test_the_backbone_takes_it(mode, mask_padding, randomize, monkeypatch, instruction_set):
    """With the result of torch's operations. Prevents: a backbone that goes by a slower way, unnoticed."""
    model = randomize(
        SwinTransformerV2(
            embed_dims=32,
            depths=(2, 2),
            num_heads=(1, 2),
            out_indices=(0, 1),
            window_size=[7, 4],
            drop_path_rate=0.0,
            mask_padding=mask_padding,
        )
    )
    model.train(mode == 'training')
    x = torch.rand(2, 3, 97, 45)
    calls = []
    forward = cpp_attention.forward
    monkeypatch.setattr(cpp_attention, 'forward', lambda *given: calls.append(1) or forward(*given))
    found = []
    for library in (cpp.library(), None):
        monkeypatch.setattr(cpp, 'library', lambda library=library: library)
        with torch.set_grad_enabled(mode == 'training'):
            maps = model(x)
        gradients = []
        if mode == 'training':
            gradients = torch.autograd.grad(sum(m.square().mean() for m in maps), list(model.parameters()))
        found.append([*maps, *gradients])
        assert len(calls) == 4
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


@pytest.mark.parametrize('bytes_', [1, 2])
def test_heads_computed_in_turn_are_those_computed_at_once(bytes_, randomize, monkeypatch, instruction_set):
    """Where no backward pass needs them: one by one, and two of three. Prevents: weights or a bias of other heads."""
    model = randomize(SwinTransformerV2(embed_dims=96, depths=(2,), num_heads=(3,), out_indices=(0,), window_size=4))
    model.eval()
    x = torch.rand(1, 3, 41, 60)
    expected = model(x)[0].detach()
    calls, forward = [], cpp_attention.forward
    monkeypatch.setattr(cpp_attention, 'forward', lambda *given: calls.append(1) or forward(*given))
    monkeypatch.setattr(attention_op, 'FRESH_BYTES', bytes_ if bytes_ == 1 else 11 * 15 * 96 * 4 * 2)
    with torch.no_grad():
        found = model(x)[0]
    assert len(calls) == (6 if bytes_ == 1 else 4)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_without_the_library_torch_computes_the_same(monkeypatch, instruction_set):
    """On a part of the map, as padding is cut off. Prevents: machines without a compiler that train something else."""
    given = [t.requires_grad_() for t in in_type(torch.float32, problem(B=2, size=(25, 42), window=(8, 8), nH=3))[0]]
    grad = torch.randn(2, 23, 41, 3, 32)
    y = attention_on_map(*given, Options((23, 41), shifted=True))
    found = torch.autograd.grad(y, given, grad)
    monkeypatch.setattr(cpp, 'library', lambda: None)
    again = attention_on_map(*given, Options((23, 41), shifted=True))
    torch.testing.assert_close(again, y, rtol=1e-4, atol=1e-5)
    for a, b in zip(torch.autograd.grad(again, given, grad), found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@needs_native
def test_it_brings_no_threads_of_its_own():
    """Prevents: a second OpenMP, whose waiting threads take the cores from torch's: everything is ten times slower."""
    path = Path(cpp.library()._name)
    assert path.name.endswith(sysconfig.get_config_var('EXT_SUFFIX'))
    needed = subprocess.run(['ldd', path], capture_output=True, text=True, check=True).stdout
    assert 'libc.so' in needed and 'omp' not in needed
