"""Weights that are not plain parameters take part: pruned, int8, parametrized, or of a tensor subclass."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from support.tiny_layers import assert_close, differ, each_option, full_name, linear_layers, loss_of, picture
from torch import nn
from torch.nn.utils import parametrize, prune


@each_option
def test_pruned_weights_stay_pruned_in_training(options, build):
    """Two steps of an optimizer with half of the weights masked. Prevents: a weight that is computed once, so that a
    second step goes backward through freed memory, and training that fills what was pruned."""
    model = build(**options)
    for layer in linear_layers(model).values():
        prune.l1_unstructured(layer, 'weight', 0.5)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(picture())).backward()
        optimizer.step()
    masked = build(**options)
    state = {}
    for name, value in model.state_dict().items():
        if name.endswith('weight_mask'):
            assert 0.4 < value.mean() < 0.6
        else:
            mask = model.state_dict().get(name.replace('_orig', '_mask')) if name.endswith('_orig') else None
            state[name.removesuffix('_orig')] = value if mask is None else value * mask
    masked.load_state_dict(state)
    for mode in (True, False):
        with torch.no_grad():
            assert_close(model.train(mode)(picture()), masked.train(mode)(picture()))
            assert differ(masked(picture()), build(**options).train(mode)(picture()))
    for layer in linear_layers(model).values():
        if layer.weight_orig.grad is not None:
            assert not layer.weight_orig.grad[layer.weight_mask == 0].any()


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated', 'ignore:torch.quantize_per_tensor')
def test_int8_quantization_finds_every_linear_layer(build):
    """quantize_dynamic finds every linear layer and the result computes nearly the same. Prevents: linear layers of a
    class of ours, which quantization passes by, and reading a weight that int8 layers have as a method."""
    model, x = build().eval(), picture()
    for block in (block for stage in model.stages for block in stage.blocks):
        block.attn.logit_scale.data.clamp_(max=math.log(10))  # at logits of 100, int8 is another model
    small = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    left = {name for name, module in small.named_modules() if type(module) is nn.Linear}
    replaced = {
        name for name, module in small.named_modules() if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)
    }
    assert not left and replaced == set(linear_layers(model))
    with torch.no_grad():
        for _ in range(2):
            for mine, right in zip(small(x), model(x), strict=True):
                assert 1e-4 * right.abs().mean() < (mine - right).abs().mean() < 0.1 * right.abs().mean()


class Powers(nn.Module):
    """A parametrization with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, value):
        # Each number by another: a norm that follows undoes one factor for all.
        return value * self.factor ** torch.linspace(1, 3, value.numel()).view_as(value)


OWNERS = {  # the name of a layer: of its block, or of the backbone
    'attn.qkv': 'weight',
    'attn.proj': 'weight',
    'mlp.fc1': 'weight',
    'mlp.fc2': 'bias',
    'norm1': 'weight',
    'attn.cpb_mlp.0': 'weight',
    'attn.cpb_mlp.2': 'weight',
    'attn': 'logit_scale',
    'attn ': 'v_bias',
    'stages.1.downsample.reduction': 'weight',
    'patch_embed.proj': 'weight',
}


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('owner', OWNERS)
def test_a_parametrized_weight_equals_its_value_and_learns(owner, training, build):
    """It equals the weight with the value written into it, follows its own parameter, and lets that learn. Prevents:
    a value that is computed once and kept, and a product that is cut off from its parameters."""
    name, tensor = full_name(owner), OWNERS[owner]
    model, written, x = build().train(training), build().train(training), picture()
    plain = build().train(training)(x)
    parametrization = Powers()
    parametrize.register_parametrization(model.get_submodule(name), tensor, parametrization)
    parameter = getattr(written.get_submodule(name), tensor)
    value = parameter.detach().clone()
    powers = torch.linspace(1, 3, value.numel()).view_as(value)
    for factor in (0.5, 0.25):
        with torch.no_grad():
            parametrization.factor.fill_(factor)
            parameter.copy_(value * factor**powers)
            assert_close(model(x), written(x))
            assert_close(model(x), written(x))
            assert differ(model(x)[-1:], plain[-1:])
    loss_of(model(x)).backward()
    loss_of(written(x)).backward()
    expected = (parameter.grad * value * powers * factor ** (powers - 1)).sum()  # by the chain rule
    torch.testing.assert_close(parametrization.factor.grad, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings('ignore:.*weight_norm.* is deprecated')
def test_weights_computed_by_a_pre_hook_are_those_of_the_call(build):
    """weight_norm and spectral_norm of old, whose hooks set the weight in front of each call. Prevents: the weight of
    the call before, and of the last graph."""
    model = build()
    for layer in linear_layers(model).values():
        torch.nn.utils.weight_norm(layer)
    x = picture()
    assert_close(model(x), build()(x))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model(x)).backward()
        assert all(layer.weight_g.grad is not None for layer in linear_layers(model).values())
        optimizer.step()
    written = build()
    with torch.no_grad():
        for (_, mine), (_, theirs) in zip(model.named_modules(), written.named_modules(), strict=True):
            for key, parameter in theirs.named_parameters(recurse=False):
                if key == 'weight' and hasattr(mine, 'weight_g'):
                    parameter.copy_(mine.weight_v * (mine.weight_g / mine.weight_v.norm(dim=1, keepdim=True)))
                else:
                    parameter.copy_(getattr(mine, key))
        for mode in (True, False):
            assert_close(model.train(mode)(x), written.train(mode)(x))


class Int8(torch.Tensor):
    """A weight kept as int8, as libraries of quantization do: an operation on it is one on its values."""

    products = 0

    @staticmethod
    def __new__(cls, weight):
        scale = weight.detach().abs().amax() / 127
        tensor = torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype, device=weight.device)
        tensor.numbers, tensor.scale = (weight.detach() / scale).round().to(torch.int8), scale
        return tensor

    def values(self):
        return self.numbers.to(self.dtype) * self.scale

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            Int8.products += 1
            args = [one.values() if isinstance(one, Int8) else one for one in args]
            return func(*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f'{func} on an int8 weight')


def test_weights_of_a_tensor_subclass_are_asked_to_multiply(build):
    """Each is asked to multiply, once per layer and pass. Prevents: kernels that read the memory of a weight that has
    none, or takes values out of it that it does not mean."""
    model, written, x = build().eval(), build().eval(), picture()
    for name, layer in linear_layers(model).items():
        small = Int8(layer.weight)
        layer.weight = nn.Parameter(small, requires_grad=False)
        assert type(layer.weight) is Int8
        written.get_submodule(name).weight.data.copy_(small.values())
    Int8.products = 0
    for _ in range(2):
        assert_close(model(x), written(x))
    assert Int8.products == 2 * len(linear_layers(model))
