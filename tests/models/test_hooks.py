"""Hooks on layers fire once per pass, and what they return is used."""

from collections import Counter

import pytest
import torch
from support.tiny_layers import (
    OPTIONS,
    Hooks,
    assert_close,
    assert_identical,
    callable_modules,
    differ,
    each_option,
    linear_layers,
    loss_of,
    picture,
    weigh,
    weigh_columns,
    weigh_rows,
)
from torch import nn
from torch.nn.modules import module as torch_module

RATES = [{}, dict(drop_rate=0.2, drop_path_rate=0.5), dict(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)]


@pytest.mark.parametrize('rates', RATES, ids=['no rates', 'dropout', 'dropout of the attention'])
@each_option
def test_every_hook_fires_once(options, rates, build):
    """On each module but lists of them, in both modes, at a second pass as at the first; the output is that without
    hooks. Prevents: a layer whose weights are read behind its back, one that is called twice, and a position bias that
    is kept from before."""
    model, x = build(**options, **rates), picture(2)
    names = set(callable_modules(model))
    for training in (True, False):
        model.train(training)
        torch.manual_seed(1)
        plain = model(x)
        with torch.no_grad():
            torch.manual_seed(1)
            plain_without_gradients = model(x)  # the position bias is kept from here on
        hooks = Hooks(model)
        for grad in (True, False, False):
            hooks.clear()
            torch.manual_seed(1)
            with torch.set_grad_enabled(grad):
                assert_close(model(x), plain)
            assert set(hooks.before) == set(hooks.after) == names
            assert set(hooks.before.values()) == set(hooks.after.values()) == {1}
        hooks.remove()
        torch.manual_seed(1)
        assert_identical(model(x), plain)
        with torch.no_grad():
            torch.manual_seed(1)
            assert_identical(model(x), plain_without_gradients)


@pytest.mark.filterwarnings('ignore:Full backward hook is firing when gradients are computed')
@each_option
def test_every_backward_hook_fires_once(options, build):
    """In training, with the gradients of a backbone without hooks. Prevents: a gradient that passes by a layer's hook
    (as of a gradient check-up), and an operation in place on what a hook watches."""
    model, plain, x = build(**options), build(**options), picture().requires_grad_()
    hooks = Hooks(model, backward=True)
    loss_of(model(x)).backward()
    frozen = {
        name for name in hooks.after if 'frozen_stages' in options and 'cpb_mlp' in name and name.startswith('stages.0')
    }  # neither input nor weight has a gradient
    assert set(hooks.back) == set(callable_modules(model)) - frozen
    assert set(hooks.back.values()) == {1}
    loss_of(plain(x)).backward()
    for (name, mine), right in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (right.grad is None), name
        if right.grad is not None:
            assert_close((mine.grad,), (right.grad,), 1e-4)


def test_hooks_change_nothing_in_float64(build):
    """Called layers compute what the fused ones do, to 1e-12. Prevents: a second formula that differs by little."""
    for options in OPTIONS.values():
        for training in (True, False):
            model, x = build(**options).double().train(training), picture().double()
            plain = model(x)
            hooks = Hooks(model)
            assert_close(model(x), plain, 1e-12)
            hooks.remove()


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_hooks_fire_once_when_compiled(backend, build):
    """In training and evaluation. Prevents: a graph that was made from the weights alone."""
    torch._dynamo.reset()
    for training in (True, False):
        model, expected = build(depths=(1, 1)).train(training), build(depths=(1, 1)).train(training)
        hooks = Hooks(model)
        compiled = torch.compile(model, backend=backend)
        for _ in range(2):
            hooks.clear()
            assert_close(compiled(picture()), expected(picture()))
            assert set(hooks.after) == set(hooks.before) == set(callable_modules(model))
            assert set(hooks.after.values()) == set(hooks.before.values()) == {1}
    torch._dynamo.reset()


LINEAR_IN_EFFECT = (nn.Linear, nn.LayerNorm, nn.Conv2d)


def test_a_hook_may_replace_the_output_of_any_layer(build):
    """With its channels scaled: for a linear layer, a norm or a convolution, as if its weights were. Removing the hook
    leaves no trace. Prevents: a hook that fires and is not listened to."""
    model, x = build().eval(), picture()
    with torch.no_grad():
        plain = model(x)
        for name, module in callable_modules(model).items():
            handle = module.register_forward_hook(
                lambda module, args, out: (
                    tuple(weigh(one, 1) for one in out)
                    if isinstance(out, tuple)
                    else weigh(out, 1 if isinstance(module, nn.Conv2d) else -1)
                )
            )
            found, again = model(x), model(x)
            handle.remove()
            assert_identical(found, again)
            assert differ(found[:1], plain[:1]) or differ(found[1:], plain[1:]), name
            if isinstance(module, LINEAR_IN_EFFECT):
                expected = build().eval()
                weigh_rows(expected.get_submodule(name))
                assert_close(found, expected(x))
            assert_identical(model(x), plain)


def test_a_hook_may_replace_the_input_of_any_linear_layer(build):
    """With its channels scaled, as if the weight's columns were. Prevents: as above, for hooks in front."""
    model, x = build().eval(), picture()
    with torch.no_grad():
        plain = model(x)
        for name, layer in linear_layers(model).items():
            handle = layer.register_forward_pre_hook(lambda module, args: (weigh(args[0]),))
            found = model(x)
            handle.remove()
            expected = build().eval()
            weigh_columns(expected.get_submodule(name))
            assert_close(found, expected(x))
            assert differ(found[-1:], plain[-1:])
            assert_identical(model(x), plain)


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
def test_global_hooks_fire_once(training, build):
    """Those of torch.nn.modules.module, which profilers use. Prevents: a fused path that looks at a layer's own hooks
    only."""
    model, x = build().train(training), picture()
    with torch.no_grad():
        plain = model(x)
        plain = model(x)
        called = Counter()
        handles = [
            torch_module.register_module_forward_pre_hook(lambda module, args: called.update([(id(module), 'before')])),
            torch_module.register_module_forward_hook(lambda module, args, out: called.update([(id(module), 'after')])),
        ]
        try:
            found = model(x)
        finally:
            for handle in handles:
                handle.remove()
        assert called == Counter(
            (id(module), when) for module in callable_modules(model).values() for when in ('before', 'after')
        )
        assert_close(found, plain)
        assert_identical(model(x), plain)
