"""The position bias that evaluation keeps follows its weights, and is no part of the model's state."""

import copy
import pickle

import pytest
import torch
from mmengine.hooks import EMAHook
from support.tiny_layers import assert_identical, small


def test_state_dict_holds_learned_parameters_and_their_normaliser(randomize):
    """Before and after a forward pass in eval. Prevents: tables and caches in checkpoints, bound to one window."""
    model = small(randomize)
    names = {name for name, _ in model.named_parameters()}
    model.eval()(torch.rand(1, 3, 32, 32))
    assert set(model.state_dict()) == names | {'pretrained_windows'}


def test_weights_load_into_another_window(randomize):
    """Prevents: anything in the state_dict that depends on the window."""
    small(window_size=[(6, 3), 12]).load_state_dict(small(randomize).state_dict(), strict=True)


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_caches_of_their_own(copier, randomize):
    """A used model can be copied, and the copy follows its own weights. Prevents: a kept bias shared with the copy."""
    model = small(randomize).eval()
    x = torch.rand(1, 3, 36, 36)
    with torch.no_grad():
        before = model(x)
        twin = copier(model)
        assert_identical(before, twin(x))
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert_identical(before, model(x))
        fresh = small().eval()
        fresh.load_state_dict(twin.state_dict())
        assert_identical(fresh(x), twin(x))


@pytest.mark.parametrize('change', ['copy', 'data', 'load', 'double'])
def test_kept_bias_follows_its_weights(change, randomize):
    """In eval, any way to change weights is noticed. Prevents: a stale position bias, e.g. after an EMA swap, which
    copies into ``param.data`` and leaves the version counter alone."""
    model, other = small(randomize).eval(), randomize(small(), seed=1).eval()
    x = torch.rand(1, 3, 36, 36)
    with torch.no_grad():
        model(x)
        if change == 'load':
            model.load_state_dict(other.state_dict())
        elif change == 'double':
            model, other, x = model.double(), other.double(), x.double()
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            if change == 'data':
                mine.data.copy_(theirs.data)
            elif change in ('copy', 'double'):
                mine.copy_(theirs)
        assert_identical(model(x), other(x))


def test_mmengine_ema_swap_is_noticed(randomize):
    """mmengine's EMAHook swaps averaged weights in and out of a model in eval. Prevents: validating a mixture."""
    model, other = small(randomize).eval(), randomize(small(), seed=1).eval()
    hook = EMAHook()
    hook.src_model, hook.ema_model = model, type('Averaged', (), dict(module=other, update_buffers=False))()
    x = torch.rand(1, 3, 36, 36)
    with torch.no_grad():
        mine, theirs = model(x), other(x)
        hook._swap_ema_parameters()
        assert_identical(model(x), theirs)
        hook._swap_ema_parameters()
        assert_identical(model(x), mine)


def test_eval_mode_still_trains(randomize):
    """Gradients in eval mode reach the position bias. Prevents: the kept bias cutting the graph of a model that is
    fine-tuned in eval, and tensors made under inference_mode entering a training step."""
    model = small(randomize).eval()
    x = torch.rand(1, 3, 36, 36)
    with torch.inference_mode():
        model(x)
    sum(out.square().sum() for out in model(x)).backward()
    assert all(p.grad.abs().max() > 0 for p in model.stages[0].blocks[0].attn.cpb_mlp.parameters())
