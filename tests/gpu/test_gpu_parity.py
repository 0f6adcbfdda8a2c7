"""All ways to compute attention, in all types: the backbone on a GPU against float64 on the CPU.

Without a GPU the CPU stands in, with small windows, Triton's interpreter and no TF32.
"""

import contextlib

import pytest
import torch
from support.versions import needs_compiler, needs_float16

from swinv2_mm import SwinTransformerV2
from swinv2_mm.compat import COMPILES

pytestmark = [pytest.mark.gpu, needs_float16]
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# Tokens that no window divides: padded and shifted; the second stage has half as many.
WINDOWS, SIZE = ((8, 16, 24), (2, 3, 148, 204)) if DEVICE == 'cuda' else ((4,), (1, 3, 36, 44))
SMALL = dict(embed_dims=32, depths=(2, 2), num_heads=(1, 2), out_indices=(0, 1), drop_path_rate=0.0)
PATHS = {
    'sdpa': dict(attn_backend='sdpa'),
    'chunks': dict(attn_backend='sdpa', attn_chunk=2),
    'triton': dict(attn_backend='triton'),
    'auto': dict(attn_backend='auto'),
}
# How far from float64: rounding a number is off by 2^-24, 2^-11 (float16 and TF32) and 2^-8, and a few dozen roundings
# follow each other. By type: of the weights, of autocast, whether TF32, and how near maps and gradients have to be.
TYPES = {
    'float32': (torch.float32, None, False, 5e-6, 2e-5),
    'TF32': (torch.float32, None, True, 5e-3, 2e-2),
    'float16': (torch.float32, torch.float16, False, 5e-3, 2e-2),
    'bfloat16': (torch.float32, torch.bfloat16, False, 4e-2, 1.5e-1),
    'float16 weights': (torch.float16, None, False, 5e-3, 2e-2),
    'bfloat16 weights': (torch.bfloat16, None, False, 4e-2, 1.5e-1),
}
LOSS_SCALE = 2.0**10  # gradients of float16 would vanish
QUICK = {('sdpa', 'bfloat16'), ('triton', 'float32'), ('triton', 'bfloat16 weights')}


def image():
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def build(randomize):
    """A backbone with random weights, rounded to a type; scales of 10, since larger ones make more of any rounding."""

    def call(window, dtype=torch.float32, **options):
        model = randomize(SwinTransformerV2(**SMALL | options, window_size=window))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith('logit_scale'):
                    parameter.fill_(2.3)
        return model.to(dtype)

    return call


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch):
    """Neither products nor convolutions round their factors, unless a test says so."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


def step(model, run, x, autocast=None):
    """Maps of a training step and of an evaluation, and the gradients of image and weights."""
    x = x.clone().requires_grad_()
    context = torch.autocast(x.device.type, autocast) if autocast else contextlib.nullcontext()
    with context:
        maps = run(x)
    loss = sum((one.double() * one.detach().double().cos()).mean() for one in maps) * LOSS_SCALE
    gradients = torch.autograd.grad(loss, [x, *model.parameters()])
    model.eval()
    with torch.no_grad(), context:
        evaluated = run(x)
    names = ['image', *(name for name, _ in model.named_parameters())]
    return [*maps, *evaluated], dict(zip(names, gradients, strict=True))


_expected = {}


@pytest.fixture
def expected(build):
    """The same in float64 on the CPU, from weights and an image of a type."""

    def call(window, dtype):
        if (window, dtype) not in _expected:
            model = build(window, dtype, attn_backend='sdpa').double()
            _expected[window, dtype] = step(model, model, image().to(dtype).double())
        return _expected[window, dtype]

    return call


def assert_near(found, right, for_maps, for_gradients):
    """Each tensor, relative to its length; small gradients relative to a hundredth of the longest one."""
    for index, (mine, exact) in enumerate(zip(found[0], right[0], strict=True)):
        error = (mine.cpu().double() - exact).norm() / exact.norm()
        assert error <= for_maps, f'map {index}: {error:.1e}'
    longest = max(gradient.norm() for gradient in right[1].values())
    for name, exact in right[1].items():
        error = (found[1][name].cpu().double() - exact).norm() / exact.norm().clamp_min(longest / 100)
        assert error <= for_gradients, f'gradient of {name}: {error:.1e}'


def skip_without_triton(path):
    if path == 'triton' and not COMPILES:
        pytest.skip('the Triton kernels need torch 2.6')
    if path == 'triton' and DEVICE == 'cuda' and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip('the Triton kernels need compute capability 8.0')


CASES = [
    pytest.param(path, kind, window, marks=() if (path, kind) in QUICK and DEVICE == 'cpu' else pytest.mark.slow)
    for path in PATHS
    for kind in TYPES
    for window in WINDOWS
]


@pytest.mark.parametrize(('path', 'kind', 'window'), CASES)
def test_every_way_in_every_type_is_near_float64(path, kind, window, build, expected):
    """Maps in training and evaluation, and all gradients, over odd, padded and shifted maps.

    Bug: a mask, window, shift, bias or gradient of one way that is another's, or a type that a kernel cannot take.
    """
    skip_without_triton(path)
    dtype, autocast, tf32, for_maps, for_gradients = TYPES[kind]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    model = build(window, dtype, **PATHS[path]).to(DEVICE)
    found = step(model, model, image().to(DEVICE, dtype), autocast)
    assert_near(found, expected(window, dtype), for_maps, for_gradients)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize('kind', ['float32', 'bfloat16'])
@pytest.mark.parametrize('path', ['sdpa', 'triton'])
def test_compiled_it_is_near_float64(path, kind, build, expected):
    """As --compile does it, for any size. Bug: a compiler that sees another way, or takes a type for another."""
    skip_without_triton(path)
    dtype, autocast, _, for_maps, for_gradients = TYPES[kind]
    model = build(WINDOWS[0], dtype, **PATHS[path]).to(DEVICE)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='inductor' if DEVICE == 'cuda' else 'aot_eager', dynamic=True)
    found = step(model, compiled, image().to(DEVICE, dtype), autocast)
    torch._dynamo.reset()
    assert_near(found, expected(WINDOWS[0], dtype), for_maps, for_gradients)
