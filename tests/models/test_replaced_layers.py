"""Layers that somebody replaced take part; untouched layers are computed by our own code."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from support.tiny_layers import (
    TINY,
    Hooks,
    assert_close,
    assert_identical,
    differ,
    each_option,
    full_name,
    linear_layers,
    picture,
    put,
    weigh,
    weigh_columns,
    weigh_rows,
)
from torch import nn

from swinv2_mm.models.kernels import cpp, cpp_attention, linear

REPLACED = [
    'attn.qkv',
    'attn.proj',
    'attn.proj_drop',
    'attn.cpb_mlp',
    'attn.cpb_mlp.0',
    'attn.cpb_mlp.1',
    'attn.cpb_mlp.2',
    'norm1',
    'norm2',
    'mlp',
    'mlp.fc1',
    'mlp.act',
    'mlp.drop1',
    'mlp.fc2',
    'mlp.drop2',
    'stages.1.downsample.reduction',
    'stages.1.downsample.norm',
    'patch_embed.norm',
]
# The layer whose weight and bias have the same effect as the output of this one.
EFFECT = {
    'attn.proj_drop': 'attn.proj',
    'attn.cpb_mlp': 'attn.cpb_mlp.2',
    'mlp': 'mlp.fc2',
    'mlp.drop2': 'mlp.fc2',
    'attn.cpb_mlp.1': 'attn.cpb_mlp.0',
}  # a ReLU keeps positive factors


class Weigh(nn.Module):
    def forward(self, x):
        return weigh(x)


def put_behind(model, name, what):
    put(model, name, nn.Sequential(model.get_submodule(name), what))


def put_behind_forward(model, name, what):
    module = model.get_submodule(name)
    own = module.forward
    module.forward = lambda x: what(own(x))


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('replace', [put_behind, put_behind_forward], ids=['module', 'forward'])
@pytest.mark.parametrize('name', REPLACED)
def test_a_replaced_layer_takes_part(name, replace, training, build):
    """A module in the place of a layer, or a function in the place of its ``forward``, that scales the channels of what
    comes out. Prevents: a fused path that asks for the class of a layer and not for what it would do."""
    model, x = build().train(training), picture()
    with torch.no_grad():
        plain = model(x)  # and the position bias is kept
        full = full_name(name)
        replace(model, full, nn.Identity())
        assert_close(model(x), plain)
        replace(model, full, Weigh())
        found = model(x)
        assert_close(model(x), found)
        expected = build().train(training)
        if name in ('mlp.act', 'mlp.drop1'):  # what fc2 is given
            weigh_columns(expected.get_submodule(full_name('mlp.fc2')))
        else:
            weigh_rows(expected.get_submodule(full_name(EFFECT.get(name, name))))
        assert_close(found, expected(x))
        assert differ(found[-1:], plain[-1:])


def test_another_activation_takes_part(build):
    """A SiLU for the GELU, and the GELU of the hyperbolic tangent. Prevents: a formula that stays the exact GELU."""
    x = picture()
    model = build()
    mlp = model.stages[0].blocks[1].mlp
    tokens = torch.randn(2, 3, 32)
    for act, function in ((nn.SiLU(), F.silu), (nn.GELU('tanh'), lambda h: F.gelu(h, approximate='tanh'))):
        mlp.act = act
        expected = F.linear(function(F.linear(tokens, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
        torch.testing.assert_close(mlp(tokens), expected, rtol=1e-5, atol=1e-5)
        assert any(not torch.equal(a, b) for a, b in zip(model(x), build()(x), strict=True))


def test_a_layer_may_gain_or_lose_its_bias(build):
    """qkv, the merging and the position bias with a bias; fc1 and fc2 without. Prevents: a bias that is taken for
    given, or for not there."""
    model, x = build().eval(), picture()
    for name, layer in linear_layers(model).items():
        layer.bias = nn.Parameter(torch.zeros(layer.out_features)) if layer.bias is None else None
        assert (name.endswith(('qkv', 'reduction', 'cpb_mlp.2'))) == (layer.bias is not None)
    zeroed = build().eval()
    for layer in linear_layers(zeroed).values():
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        assert_close(model(x), zeroed(x))
        for layer in linear_layers(model).values():
            if layer.bias is not None:
                layer.bias.fill_(0.5)
        assert differ(model(x), zeroed(x))


def test_the_whole_class_may_be_patched(build, monkeypatch):
    """``nn.Linear.forward`` replaced for all layers, as some libraries of adapters do. Prevents: a fused path that
    looks at each layer, and not at its class."""
    model, x, called = build().eval(), picture(), Counter()
    own = nn.Linear.forward
    with torch.no_grad():
        plain = model(x)
        monkeypatch.setattr(nn.Linear, 'forward', lambda self, x: [called.update([id(self)]), weigh(own(self, x))][1])
        found = model(x)
        monkeypatch.undo()
        assert called == Counter(map(id, linear_layers(model).values()))
        assert differ(found, plain)
        assert_identical(model(x), plain)


@each_option
def test_untouched_layers_are_computed_by_our_own_code(options, build, monkeypatch):
    """All of them, in training and evaluation, also once hooks have come and gone. Prevents: a slow path that creeps in
    silently."""
    counts = Counter()

    def spy(owner, name):
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: [counts.update([name]), own(*args, **kwargs)][1])

    for owner, name in ((linear, 'mlp'), (linear, 'linear'), (cpp_attention, 'forward')):
        spy(owner, name)
    model, x = build(**options), picture()
    blocks = sum(TINY['depths'])
    expected = dict(mlp=blocks, linear=2 * blocks + 1)  # qkv, proj; the merging
    if cpp.library() is not None:
        expected['forward'] = blocks
    for training in (True, False):
        model.train(training)
        for hooked in (False, True):
            if hooked:
                hooks = Hooks(model)
                model(x)
                hooks.remove()
            counts.clear()
            model(x)
            assert counts == expected
