"""Adapters take part: LoRA of peft, and linear layers of another class."""

import pytest
import torch
import torch.nn.functional as F
from support.tiny_layers import assert_close, differ, each_option, linear_layers, loss_of, picture, put
from torch import nn

ADAPTED = ('qkv', 'proj', 'fc1', 'fc2')


def with_lora(model, scaling=1.5):
    """peft's adapters of random values; new ones change nothing, since one of their matrices is zero."""
    peft = pytest.importorskip('peft', reason='the library whose adapters are tested is not installed')
    config = peft.LoraConfig(r=4, lora_alpha=4 * scaling, target_modules=list(ADAPTED), lora_dropout=0.0)
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if 'lora_' in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return adapted


def merged_by_hand(model, adapted, scaling=1.5):
    """Add ``scaling B A`` to the weights of a copy of the base; return it, and ``(weight, A, B)`` of each layer."""
    layers = {}
    for name, module in adapted.base_model.model.named_modules():
        if not hasattr(module, 'lora_A'):
            continue
        down, up = (getattr(module, side)['default'].weight for side in ('lora_A', 'lora_B'))
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight += scaling * (up.flatten(1) @ down.flatten(1)).view_as(weight)
        layers[name] = (weight, down, up)
    return model, layers


@each_option
def test_lora_equals_weights_merged_by_hand(options, build):
    """Outputs, and the gradients of both matrices by the chain rule. Prevents: adapters that are trained for nothing,
    since the backbone read the weights below them."""
    adapted = with_lora(build(**options)).train()
    merged, layers = merged_by_hand(build(**options), adapted)
    merged.requires_grad_(True)
    assert len(layers) == 4 * 3 + 1  # peft takes patch_embed.proj, too
    plain, x = build(**options), picture(2)
    found, expected = adapted(x), merged(x)
    assert differ(found, plain(x))
    assert_close(found, expected)
    loss_of(found).backward()
    loss_of(expected).backward()
    learning = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert learning and all('lora_' in name for name in learning)
    frozen = ('patch_embed', 'stages.0') if 'frozen_stages' in options else ('nothing',)
    for name, (weight, down, up) in layers.items():
        if name.startswith(frozen):
            assert down.grad is None and up.grad is None
            continue
        grad, a, b = weight.grad.flatten(1), down.flatten(1), up.flatten(1)
        assert_close((down.grad.flatten(1), up.grad.flatten(1)), (1.5 * b.t() @ grad, 1.5 * grad @ a.t()), 1e-4)


@pytest.mark.parametrize('options', [{}, dict(num_heads=(4, 8))], ids=['heads of 32 channels', 'heads of 8 channels'])
def test_lora_learns_under_autocast(options, build):
    """In bfloat16, with gradients. Prevents: an adapter of another type than what its layer is given."""
    adapted = with_lora(build(**options)).train()
    merged, _ = merged_by_hand(build(**options), adapted)
    exact = merged(picture())
    with torch.autocast('cpu', torch.bfloat16):
        maps = adapted(picture())
    for mine, right in zip(maps, exact, strict=True):
        assert (mine.float() - right).abs().mean() < 0.1 * right.abs().mean()
    loss_of(maps).backward()
    for name, parameter in adapted.named_parameters():
        assert ('lora_' in name) == (parameter.grad is not None)
        assert parameter.grad is None or (parameter.grad.isfinite().all() and parameter.grad.any())


def test_lora_is_merged_by_its_library(build):
    """merge_and_unload gives plain linear layers that compute the same. Prevents: a merged model that is another than
    the one that was validated."""
    adapted = with_lora(build()).eval()
    with torch.no_grad():
        expected = adapted(picture())
        merged = adapted.merge_and_unload()
        assert {type(layer) for layer in linear_layers(merged).values()} == {nn.Linear}
        assert_close(merged(picture()), expected)


def test_lora_learns_and_leaves_the_base_alone(build):
    """Ten steps lower a loss by a quarter; the base stays bit by bit. Prevents: fine-tuning that changes nothing, or
    everything."""
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapted, x = with_lora(model).train(), picture(2)
    with torch.no_grad():
        target = [one + 0.3 * torch.randn_like(one) for one in adapted(x)]
        for name, parameter in adapted.named_parameters():
            if 'lora_B' in name:
                parameter.zero_()  # as new ones are: the base as it was
    # Without the convolution's, which was always called.
    learning = [p for name, p in adapted.named_parameters() if 'lora_' in name and 'stages' in name]
    optimizer = torch.optim.Adam(learning, 0.02)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = sum(F.mse_loss(a, b) for a, b in zip(adapted(x), target, strict=True))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    after = {name.replace('.base_layer', ''): p for name, p in adapted.base_model.model.named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


class Adapter(nn.Linear):
    """An adapter as people write it: a linear layer with two more matrices."""

    def __init__(self, old, rank=4):
        super().__init__(old.in_features, old.out_features, bias=old.bias is not None)
        self.load_state_dict(old.state_dict())
        self.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(rank, old.in_features) * old.in_features**-0.5)
        self.up = nn.Parameter(torch.randn(old.out_features, rank) * rank**-0.5)

    def forward(self, x):
        return super().forward(x) + x @ self.down.t() @ self.up.t()


@each_option
def test_a_subclass_of_linear_takes_part(options, build):
    """Everywhere, the merging and the position bias included. Prevents: a test for isinstance, which a subclass
    passes, in front of reading the weight."""
    model, merged = build(**options), build(**options)
    for name, layer in linear_layers(model).items():
        adapter = Adapter(layer)
        put(model, name, adapter)
        with torch.no_grad():
            merged.get_submodule(name).weight.add_(adapter.up @ adapter.down)
    found = model(picture())
    assert differ(found, build(**options)(picture()))
    assert_close(found, merged(picture()))
    loss_of(found).backward()
    frozen = ('stages.0.',) if 'frozen_stages' in options else ()
    missing = {name for name, p in model.named_parameters() if name.endswith(('.down', '.up')) and p.grad is None}
    assert not {name for name in missing if not name.startswith(frozen)}
