"""``attn_backend`` says who computes attention: torch, the C++ or Triton; a backend that cannot says why."""

import pytest
import torch
from support.tiny_layers import TINY, assert_close, assert_identical, loss_of, picture
from support.versions import needs_compiler, needs_flops
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.kernels import cpp, cpp_attention

BLOCKS = sum(TINY['depths'])
needs_cpp = pytest.mark.skipif(cpp.library() is None, reason='not compiled: see test_it_is_compiled_where_it_can_be')


@pytest.fixture
def calls(monkeypatch):
    """The names of the C++ functions for attention that were called."""
    found = []
    for name in ('forward', 'backward'):
        own = getattr(cpp_attention, name)
        monkeypatch.setattr(cpp_attention, name, lambda *args, n=name, own=own: found.append(n) or own(*args))
    return found


@pytest.mark.parametrize(
    ('backend', 'times', 'compiles'),
    [
        ('sdpa', 0, False),
        ('auto', 1, False),
        ('cpp', 1, False),
        pytest.param('auto', 1, True, marks=needs_compiler),
        pytest.param('sdpa', 0, True, marks=[needs_compiler, pytest.mark.slow]),
        pytest.param('cpp', 1, True, marks=[needs_compiler, pytest.mark.slow]),
    ],
)
@needs_cpp
def test_the_cpp_runs_only_for_backends_that_allow_it(backend, times, compiles, build, calls):
    """Forward and backward, also inside the operation of a compiled graph. Prevents: 'sdpa' that runs C++, so that
    nobody can compare the two or rule one out."""
    expected = build()(picture())
    calls.clear()
    model = build(attn_backend=backend)
    torch._dynamo.reset()
    run = torch.compile(model, backend='aot_eager', dynamic=True) if compiles else model
    maps = run(picture())
    loss_of(maps).backward()
    assert (calls.count('forward'), calls.count('backward')) == (times * BLOCKS, times * BLOCKS)
    assert_close(maps, expected)
    torch._dynamo.reset()


@needs_cpp
def test_auto_and_cpp_compute_the_same_bits(build):
    """Prevents: a second way to the same C++."""
    for training in (True, False):
        assert_identical(build(attn_backend='cpp').train(training)(picture()), build().train(training)(picture()))


@pytest.mark.parametrize(
    ('options', 'dtype', 'reason'),
    [
        ({}, torch.float64, 'there is no C.. for torch.float64'),
        (dict(embed_dims=96), torch.float32, 'its heads have 96 channels, the C.. takes 64'),
        (dict(window_size=33), torch.float32, 'the window has 1089 tokens, the C.. takes 1024'),
    ],
    ids=['type', 'heads', 'window'],
)
def test_cpp_says_why_it_cannot_be_used(options, dtype, reason, build):
    """With the remedy, before anything is computed; 'auto' takes torch's operations. Prevents: a slow detour that
    nobody notices, or a reason from deep inside."""
    x = torch.rand(1, 3, 132, 132, dtype=dtype)
    with pytest.raises(ValueError, match=rf"attn_backend='cpp' cannot be used: {reason}\. Choose attn_backend='auto'"):
        build(**options, attn_backend='cpp').to(dtype)(x)
    assert all(one.isfinite().all() for one in build(**options).to(dtype)(x))


@pytest.mark.parametrize('compiles', [False, pytest.param(True, marks=needs_compiler)], ids=['eager', 'compiled'])
def test_cpp_says_that_it_was_not_compiled(compiles, build, monkeypatch):
    """Inside a compiled graph, too. Prevents: torch's operations, three times slower, on a machine without a compiler
    where somebody asked for C++."""
    monkeypatch.setattr(cpp, 'library', lambda: None)
    torch._dynamo.reset()
    model = build(attn_backend='cpp')
    run = torch.compile(model, backend='eager', dynamic=True) if compiles else model
    with pytest.raises((ValueError, RuntimeError), match='was not compiled for this processor'):
        run(picture())
    torch._dynamo.reset()


@needs_cpp
@needs_flops
def test_cpp_gives_a_tracer_the_formula(build):
    """A trace, a FLOP counter and the meta device compute nothing. Prevents: a dry run or an export that fails for a
    backend that training would take."""
    model = build(attn_backend='cpp').eval()
    with torch.no_grad():
        expected = model(picture())
        with FlopCounterMode(display=False) as counter:
            model(picture())
        assert_close(torch.jit.trace(model, picture())(picture()), expected)
    assert counter.get_total_flops() > 2 * sum(model.multiply_adds((36, 44)))
    with torch.device('meta'):
        maps = SwinTransformerV2(**TINY, attn_backend='cpp')(torch.rand(1, 3, 36, 44))
    assert [one.shape for one in maps] == [one.shape for one in expected]


@pytest.mark.parametrize('backend', ['cpp', 'triton'])
def test_dropout_of_probabilities_is_refused(backend):
    """By the constructor. Prevents: dropout that is left out in silence."""
    with pytest.raises(ValueError, match=f"attn_backend='{backend}' has no dropout, but attn_drop_rate=0.1; leave"):
        SwinTransformerV2(attn_backend=backend, attn_drop_rate=0.1)


def test_an_unknown_backend_is_refused():
    """Prevents: a typo that chooses the slow path."""
    with pytest.raises(ValueError, match="attn_backend='fast' is unknown; choose 'auto', 'sdpa', 'cpp' or 'triton'"):
        SwinTransformerV2(attn_backend='fast')
