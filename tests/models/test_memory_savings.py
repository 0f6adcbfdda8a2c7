"""Sequential attention and activation checkpointing change the memory of a step, and nothing else."""

import pytest
import torch
from support.tiny_layers import assert_identical, small
from support.versions import needs_float16

from swinv2_mm.models.kernels import cosine_attention, cpp
from swinv2_mm.models.kernels.cosine_attention import at_a_time


def step(model, x, seed=0):
    torch.manual_seed(seed)
    maps = model(x)
    sum((f * f.detach().cos()).sum() for f in maps).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return maps, gradients


def pair(randomize, **changes):
    others = {name: value for name, value in changes.items() if name not in ('attn_chunk', 'with_cp')}
    plain = small(randomize, **others)
    saving = small(**changes)
    saving.load_state_dict(plain.state_dict())
    return plain.double(), saving.double()


@pytest.mark.parametrize('chunk', [1, 3, 1000, 'auto'])
def test_sequential_attention_is_exact(chunk, randomize):
    """Outputs and gradients, with shifted and padded windows. Prevents: windows of one chunk under another's mask."""
    plain, sequential = pair(randomize, attn_chunk=chunk)
    x = torch.rand(2, 3, 52, 70, dtype=torch.float64)
    (maps, gradients), (same, equal) = step(plain, x), step(sequential, x)
    torch.testing.assert_close(same, maps, rtol=0, atol=1e-12)
    torch.testing.assert_close(equal, gradients, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(sequential.eval()(x), plain.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize('with_cp', [True, [0], (1,)])
@pytest.mark.parametrize('changes', [{}, dict(attn_chunk=2)], ids=['whole', 'sequential'])
def test_checkpointing_repeats_the_same_random_numbers(with_cp, changes, randomize):
    """With dropout and stochastic depth the recomputed block is the one that ran. Prevents: gradients of another."""
    rates = dict(drop_rate=0.2, drop_path_rate=0.3, attn_drop_rate=0.0 if changes else 0.2)
    plain, saving = pair(randomize, with_cp=with_cp, **changes, **rates)
    x = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    (maps, gradients), (same, equal) = step(plain, x), step(saving, x)
    torch.testing.assert_close(same, maps, rtol=0, atol=1e-12)
    torch.testing.assert_close(equal, gradients, rtol=1e-10, atol=1e-10)
    assert [stage.with_cp for stage in saving.stages] == [with_cp is True or i in with_cp for i in range(2)]


def test_sequential_attention_with_dropout_repeats_itself(randomize):
    """Its gradient is that of what ran, by finite differences. Prevents: others dropped when recomputing."""
    model = small(randomize, attn_chunk=2, attn_drop_rate=0.3).double()
    x = torch.rand(1, 3, 24, 24, dtype=torch.float64)
    parameter = model.stages[0].blocks[1].attn.proj.weight

    def loss():
        torch.manual_seed(0)
        return model(x)[1].square().sum()

    (gradient,) = torch.autograd.grad(loss(), parameter)
    direction = torch.randn_like(parameter)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            parameter += sign * 1e-6 * direction
            values.append(loss())
            parameter -= sign * 1e-6 * direction
    torch.testing.assert_close((gradient * direction).sum(), (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_float16)])
def test_savings_under_autocast(dtype, randomize):
    """Finite, and close to the unchunked step. Prevents: a recomputation outside of autocast."""
    plain, saving = (m.float() for m in pair(randomize, with_cp=True, attn_chunk=1))
    x = torch.rand(1, 3, 40, 40)
    results = []
    for model in (plain, saving):
        with torch.autocast('cpu', dtype):
            results.append(step(model, x)[1])
    for name, gradient in results[0].items():
        assert gradient.isfinite().all()
        near = 0.05 * float(gradient.abs().max()) + 1e-4
        torch.testing.assert_close(results[1][name], gradient, rtol=0.05, atol=near)


def test_no_more_than_a_chunk_of_logits_exists(monkeypatch, randomize):
    """Prevents: a chunk that is only computed, while the logits of all are kept for the backward pass."""
    model = small(randomize, attn_chunk=2)
    windows, kept = [], []
    probabilities = cosine_attention._probabilities

    def count(q, *rest):
        windows.append(len(q))
        return probabilities(q, *rest)

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    monkeypatch.setattr(cosine_attention, '_probabilities', count)
    monkeypatch.setattr(cpp, 'library', lambda: None)  # which keeps no logits at all
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = model(torch.rand(1, 3, 72, 72))
    forward = len(windows)
    assert max(windows) == 2
    assert not [shape for shape in kept if len(shape) >= 3 and shape[-1] == shape[-2] == 16]
    sum(f.sum() for f in maps).backward()
    assert len(windows) == 2 * forward


def test_frozen_or_wrong_settings():
    """Frozen stages need no recomputation; nonsense is refused by name. Prevents: a typo that saves nothing."""
    for wrong in (0, -1, 1.5, 'all', True):
        with pytest.raises(ValueError, match='attn_chunk'):
            small(attn_chunk=wrong)
    for wrong in ((2,), 'yes', 1, [True]):
        with pytest.raises(ValueError, match='with_cp'):
            small(with_cp=wrong)


def test_the_automatic_chunk_stays_within_its_budget():
    """Prevents: one window at a time where many fit, or logits beyond the budget."""
    for on_cpu, budget in ((True, cosine_attention.CACHE_BYTES), (False, cosine_attention.CHUNK_BYTES)):
        for num_heads, N in ((3, 64), (24, 1024), (3, 2304), (64, 4096)):
            windows, heads = at_a_time('auto', num_heads, N, on_cpu)
            one = 4 * N * N
            assert 1 <= heads <= num_heads and windows >= 1
            assert windows * heads * one <= budget or windows == heads == 1
            assert (windows + 1) * num_heads * one > budget
            assert heads == num_heads or (heads + 1) * one > budget
    assert at_a_time(None, 3, 64, on_cpu=False) == (None, 3)
    assert at_a_time(5, 3, 64, on_cpu=False) == (5, 3) == at_a_time(5, 3, 64, on_cpu=True)
    assert at_a_time(None, 3, 64, on_cpu=True) == at_a_time('auto', 3, 64, on_cpu=True)


def test_what_evaluation_keeps_is_small_and_given_back(randomize):
    """The table of offsets, nothing in training; the features are the same.

    Prevents: gigabytes of biases beside a training that has validated once.
    """
    model = small(randomize).eval()
    x = torch.rand(1, 3, 64, 64)
    attn = model.stages[0].blocks[0].attn
    with torch.no_grad():
        first = model(x)
        assert attn._kept_bias[2].shape == (2, 7, 7)
        again = model(x)
        model.train()
        assert attn._kept_bias is None
    assert_identical(first, again)
