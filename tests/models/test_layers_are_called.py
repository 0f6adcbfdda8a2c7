"""Blocks call their layers: what somebody puts in the place of a layer, or hangs on one, takes part."""

import copy
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrize, prune

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.kernels import cpp, cpp_attention, linear

# Heads of 32 channels, which the C++ of the attention takes.
TINY = dict(embed_dims=32, depths=(2, 1), num_heads=(1, 2), out_indices=(0, 1), window_size=4, drop_path_rate=0.0)
OPTIONS = {
    'defaults': {},
    'heads of 8 channels': dict(num_heads=(4, 8)),
    'recomputed': dict(with_cp=True),
    'frozen': dict(frozen_stages=1),
    'two windows at a time': dict(attn_chunk=2),
    'padding takes part': dict(mask_padding=False),
    'balanced windows': dict(window_fit='balanced', window_size=7),
}
ADAPTED = ('qkv', 'proj', 'fc1', 'fc2')

each_option = pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)


@pytest.fixture
def build(randomize):
    """A backbone without values that hide anything, with the same ones each time."""
    return lambda **options: randomize(SwinTransformerV2(**TINY | options))


def picture(batch=1):
    """9 x 11 and 5 x 6 tokens: windows of 4 are shifted, and completed by padding."""
    return torch.rand(batch, 3, 36, 44, generator=torch.Generator().manual_seed(2))


def loss_of(maps):
    return sum(one.float().sin().square().mean() for one in maps)


def assert_close(found, expected, tolerance=2e-5):
    """To a part of the largest value: logits of up to 100 make more of rounding errors."""
    for mine, right in zip(found, expected, strict=True):
        assert (mine.double() - right.double()).abs().max() <= tolerance * right.double().abs().max()


def assert_identical(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def differ(found, expected):
    return all((a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(found, expected, strict=True))


def put(model, path, module):
    """Exchange the module of this name."""
    parent, _, name = path.rpartition('.')
    setattr(model.get_submodule(parent), name, module)


def linear_layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def is_adapted(name):
    return name.rpartition('.')[2] in ADAPTED


# --- adapters --------------------------------------------------------------------------------------------------------


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
def test_lora_under_autocast(options, build):
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


# --- pruning, int8, parametrizations ---------------------------------------------------------------------------------


@each_option
def test_pruning(options, build):
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
def test_int8(build):
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


def full_name(name):
    return name if name.startswith(('stages', 'patch_embed')) else f'stages.0.blocks.1.{name}'.strip()


@pytest.mark.parametrize('training', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('owner', OWNERS)
def test_a_parametrized_weight(owner, training, build):
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
def test_weights_that_a_pre_hook_computes(build):
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


def test_weights_of_a_tensor_subclass(build):
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


# --- hooks -----------------------------------------------------------------------------------------------------------


def callable_modules(model):
    return {name: module for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)}


class Hooks:
    """Counts the calls of every module."""

    def __init__(self, model, backward=False):
        self.before, self.after, self.back = Counter(), Counter(), Counter()
        self.handles = []
        for name, module in callable_modules(model).items():
            self.handles += [
                module.register_forward_pre_hook(lambda module, args, name=name: self.before.update([name])),
                module.register_forward_hook(lambda module, args, out, name=name: self.after.update([name])),
            ]
            if backward:
                self.handles.append(
                    module.register_full_backward_hook(
                        lambda module, grad_in, grad_out, name=name: self.back.update([name])
                    )
                )

    def clear(self):
        for counts in (self.before, self.after, self.back):
            counts.clear()

    def remove(self):
        for handle in self.handles:
            handle.remove()


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


def weights(count):
    """One per channel: a norm that follows undoes a factor that all have in common."""
    return torch.linspace(0.25, 1.75, count)


def weigh(out, dim=-1):
    """Scale the channels of an output."""
    return (out.transpose(dim, -1) * weights(out.shape[dim])).transpose(dim, -1)


def weigh_rows(layer):
    """The same by the weight and the bias of a layer."""
    for parameter in layer.parameters():
        parameter.mul_(weights(len(parameter)).view(-1, *[1] * (parameter.ndim - 1)))


def weigh_columns(layer):
    """As if a linear layer were given scaled channels."""
    layer.weight.mul_(weights(layer.in_features))


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


# --- layers and forwards of somebody else ----------------------------------------------------------------------------

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


def test_a_bias_more_or_less(build):
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


# --- and nothing is lost where nobody replaced anything --------------------------------------------------------------


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
