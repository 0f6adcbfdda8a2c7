"""Half precision where it breaks elsewhere: finite, and as near to float32 as its digits allow, also in float16."""

import math

import pytest
import torch
from support.tiny_layers import small
from support.versions import needs_float16
from torch.utils._python_dispatch import TorchDispatchMode

from swinv2_mm.models.kernels import choose

pytestmark = needs_float16
LOSS_SCALE = 2.0**16  # what torch's GradScaler starts with, and where float16 ends


def attentions(model):
    return [block.attn for stage in model.stages for block in stage.blocks]


def zero_image(model, x):
    """Every token is the same, and after a norm without bias zero: queries and keys of no length."""
    with torch.no_grad():
        model.patch_embed.proj.bias.zero_()
        model.patch_embed.norm.bias.zero_()
        for attn in attentions(model):
            attn.q_bias.zero_()
    x.zero_()


def short_vectors(model, x):
    """Queries and keys near zero, whose direction float16 hardly knows: their gradients are the largest there are."""
    with torch.no_grad():
        for attn in attentions(model):
            attn.q_bias.zero_()
            attn.qkv.weight.mul_(1e-3)


def largest_logits(model, x):
    """Cosines times 100, and a bias that goes from 0 to 16."""
    with torch.no_grad():
        for attn in attentions(model):
            attn.logit_scale.fill_(2 * math.log(100))
            attn.cpb_mlp[2].weight.mul_(100)


def large_activations(model, x):
    """A residual stream of several thousand, as in the large sizes."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'norm' in name and name.endswith('weight') and not name.startswith('norm'):
                parameter.mul_(1000)


def nothing(model, x):
    pass


def step(model, x, dtype, scale=1.0):
    """The maps, and the gradients of a loss that is scaled for float16."""
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        maps = model(x)
        loss = sum(features.float().square().mean() for features in maps)
    return maps, [g / scale for g in torch.autograd.grad(loss * scale, list(model.parameters()))]


def finite(tensors):
    return all(torch.isfinite(tensor).all() for tensor in tensors)


def distance(tensors, expected):
    """Of all numbers of a list of tensors, relative to the length of those expected."""
    a, b = (torch.cat([tensor.float().flatten() for tensor in some]) for some in (tensors, expected))
    return ((a - b).norm() / b.norm()).item()


# Rounding a number is off by 2^-12 to 2^-11 in float16, 2^-9 to 2^-8 in bfloat16; a few dozen roundings follow each
# other here. A logit of 100 is off by up to 0.05 and 0.4, and so is the logarithm of its probability: gradients are
# then no longer near each other, even if attention is computed in float32 from queries and keys that were rounded.
@pytest.mark.parametrize(('dtype', 'near'), [(torch.float16, 0.01), (torch.bfloat16, 0.08)], ids=['half', 'bfloat'])
@pytest.mark.parametrize('mask_padding', [True, False], ids=['masked', 'zeros'])
@pytest.mark.parametrize(
    ('change', 'maps_worse', 'gradients_worse'),
    [
        (nothing, 1, 1),
        (zero_image, 1, 1),
        (short_vectors, 1, 1),
        (largest_logits, 10, math.inf),
        (large_activations, 1, 3),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_half_precision_is_finite_and_near_float32(
    change, maps_worse, gradients_worse, mask_padding, dtype, near, randomize
):
    """Maps and gradients, on maps that windows do not fit, with the loss scale that torch's GradScaler would find.

    The largest scale at which all is finite may keep the largest gradient two powers of two below what float16 holds,
    not more. Prevents: 0 / 0 or 0 * inf of a normalisation, which no scale helps; steps of a computation that overflow
    long before its result; a bias or a scale in half precision.
    """
    model = small(randomize, mask_padding=mask_padding)
    x = torch.randn(2, 3, 44, 36)
    change(model, x)
    expected_maps, expected = step(model, x, torch.float32)
    scale = LOSS_SCALE
    while not finite((found := step(model, x, dtype, scale))[1]) and scale > 2.0**-20:
        scale /= 2
    maps, gradients = found
    assert finite((*maps, *gradients))
    largest = scale * max(g.abs().max().item() for g in expected)
    assert scale == LOSS_SCALE or (dtype == torch.float16 and largest > LOSS_SCALE / 4)
    assert distance(maps, expected_maps) <= near * maps_worse
    assert distance(gradients, expected) <= near * gradients_worse


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('weights', ['float32', 'half'])
def test_processors_with_and_without_arithmetic_agree(weights, dtype, monkeypatch, randomize):
    """Under autocast, and with weights of the type. Prevents: an operand that stays in half precision beside one that
    was widened, on the kind of processor not at hand; a pass in loops, fifty times slower."""
    model, x = small(randomize), torch.randn(1, 3, 44, 36)
    if weights == 'half':
        model, x = model.to(dtype), x.to(dtype)
    found = []
    for native in (False, True):
        monkeypatch.setattr(choose, 'has_arithmetic', lambda kind, native=native: native or kind != dtype)
        with Products() as computed:
            maps, gradients = step(model, x, torch.float32 if weights == 'half' else dtype)
        assert {features.dtype for features in maps} <= ({dtype} if weights == 'half' else {dtype, torch.float32})
        assert dtype not in computed.types or native
        found.append([*maps, *gradients])
    assert distance(found[0], found[1]) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_a_backward_pass_inside_of_autocast(dtype, monkeypatch, randomize):
    """As people write who know that it should be outside. Prevents: gradients of another type than what C++ was given,
    which it would read beyond their end."""
    model, x = small(randomize), torch.randn(1, 3, 44, 36)
    for native in (False, True):
        monkeypatch.setattr(choose, 'has_arithmetic', lambda kind, native=native: native or kind != dtype)
        expected = step(model, x, dtype)[1]
        with torch.autocast('cpu', dtype):
            maps = model(x)
            loss = sum(features.float().square().mean() for features in maps)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
        assert distance(gradients, expected) <= 8 * torch.finfo(dtype).eps


class Products(TorchDispatchMode):
    """The types in which matrix products and convolutions are computed."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        if any(part in name for part in ('mm', 'linear', 'convolution', 'matmul')):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))
