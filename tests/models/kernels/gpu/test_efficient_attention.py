"""Attention by torch's memory-efficient kernel for GPUs: on one if there is one, else by the formula in its place."""

import contextlib
import math

import pytest
import torch
from support.gpu_attention import emulated
from support.versions import needs_float16
from support.window_formula import formula

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models import window as window_module
from swinv2_mm.models.kernels.attention_op import Options, map_attention
from swinv2_mm.models.kernels.cosine_attention import cosine_attention
from swinv2_mm.models.kernels.gpu import efficient_attention, usable
from swinv2_mm.models.window import window_layout

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
# B, (H, W), window, shifted
CASES = {
    'whole windows': (2, (8, 12), (4, 4), False),
    'odd map, padded and shifted': (1, (9, 13), (4, 5), True),
    'most windows without a mask': (1, (30, 30), (3, 3), True),
    'one window': (2, (7, 7), (7, 7), False),
}


@pytest.fixture(autouse=True)
def plans_with_two_groups(monkeypatch):
    """Maps as small as these would get one group, for all windows."""
    monkeypatch.setattr(window_module, 'FEW_PAIRS', 0)


def emulation():
    return contextlib.nullcontext() if DEVICE.type == 'cuda' else emulated()


def problem(case, dtype, nH=2, d=16, seed=0):
    torch.manual_seed(seed)
    B, size, window, shifted = CASES[case]
    groups = window_module._plan_on_device(B, *size, window, shifted, DEVICE).groups
    qkv = torch.randn(groups[-1].stop, math.prod(window), 3, nH, d)
    scale = 1 + torch.rand(nH, 1, 1) * 9
    table = torch.randn(nH, 2 * window[0] - 1, 2 * window[1] - 1)
    return [x.to(DEVICE).requires_grad_() for x in (qkv.to(dtype), scale, table)], groups


def compare(case, dtype, tolerance, windows):
    """Output and gradients with those of the formula in float64, relative to their largest value.

    The gradient of the scale is a sum of many terms of both signs: rounding is larger beside it.
    """
    given, groups = problem(case, dtype)
    exact = [x.detach().double().requires_grad_() for x in given]
    with emulation():
        out = cosine_attention(*given, groups, windows)
        grad = torch.randn_like(out)
        found = [out, *torch.autograd.grad(out, given, grad)]
    expected = formula(*exact, groups)
    expected = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    for name, mine, right in zip(('out', 'qkv', 'scale', 'table'), found, expected, strict=True):
        error = float((mine.detach().double() - right).abs().max() / right.abs().max())
        assert error <= tolerance * (4 if name == 'scale' else 1), f'{name}: {error:.1e}'


@pytest.mark.parametrize('windows', [None, 3, 'auto'])
@pytest.mark.parametrize('case', CASES)
def test_float32_is_the_formula(case, windows):
    """However many calls. Prevents: a window under another's mask or bias, a call left out of a gradient's sum."""
    compare(case, torch.float32, 5e-6, windows)


@pytest.mark.parametrize(
    'dtype, tolerance',
    [(torch.bfloat16, 3e-2), pytest.param(torch.float16, 4e-3, marks=needs_float16)],
    ids=['bfloat16', 'float16'],
)
def test_half_precision_is_near_the_formula(dtype, tolerance):
    """Prevents: lengths, or sums over windows, in half precision."""
    compare('odd map, padded and shifted', dtype, tolerance, None)


def test_a_call_is_limited_in_bytes(monkeypatch):
    """Biases of masked windows, and gradients of biases. Prevents: the logits of a large map, all in memory."""
    (qkv, _, table), groups = problem('most windows without a mask', torch.float32)
    pieces = lambda grad: [  # noqa: E731
        piece for piece, _ in efficient_attention._pieces(table, qkv.dtype, groups, None, grad)
    ]
    assert len(pieces(True)) == len(groups) == 2
    monkeypatch.setattr(efficient_attention, 'CALL_BYTES', 10 * 2 * 9 * 16 * 4)  # ten windows of two heads
    assert all(piece.stop - piece.start <= 10 for piece in pieces(True))
    assert pieces(False)[0] == slice(0, groups[0].stop)  # one bias for all
    assert pieces(True)[-1].stop == pieces(False)[-1].stop == len(qkv)
    compare('most windows without a mask', torch.float32, 5e-6, None)


def test_vectors_without_a_direction():
    """Zero, or shorter than a rounding error. Prevents: NaN, or gradients of a million."""
    (qkv, scale, table), groups = problem('odd map, padded and shifted', torch.float32)
    with torch.no_grad():
        qkv[0] = 0
        qkv[1, 0] *= 1e-8
    with emulation():
        out = cosine_attention(qkv, scale, table, groups, None)
        grad = torch.autograd.grad(out.square().sum(), qkv)[0]
    assert out.isfinite().all() and grad.isfinite().all() and grad.abs().max() < 100
    assert not grad[0, :, :2].any() and not grad[1, 0, :2].any()


@pytest.mark.parametrize('chunk', [None, 2])
@pytest.mark.parametrize('by_kernel', [True, False], ids=['kernel', 'operations'])
def test_the_backbone_computes_the_same_on_plans_of_a_gpu(by_kernel, chunk, randomize, monkeypatch):
    """Maps and all gradients, by the kernel, and by operations where it cannot be used.

    Prevents: padding in a gradient, a wrong plan, a mask of each window for the wrong windows.
    """
    torch.manual_seed(0)
    arch = dict(
        embed_dims=16,
        depths=(2, 2),
        num_heads=(2, 2),
        out_indices=(0, 1),
        window_size=[(4, 3), 7],
        drop_path_rate=0.0,
        attn_chunk=chunk,
        attn_backend='sdpa',
    )
    model = randomize(SwinTransformerV2(**arch)).to(DEVICE)
    x = torch.rand(2, 3, 58, 70, device=DEVICE)

    def results():
        model.zero_grad()
        maps = model.train()(x)
        sum((f * f.detach().cos()).sum() for f in maps).backward()
        with torch.no_grad():
            return [*maps, *(p.grad.clone() for p in model.parameters()), *model.eval()(x)]

    with monkeypatch.context() as patch:
        patch.setattr(usable, 'torch_kernel_computes', lambda qkv: False)
        expected = results()
    window_module._kept_plan.cache_clear()
    monkeypatch.setattr(window_module._kept_plan, 'function', window_module._plan_on_device)
    with emulation() if by_kernel else emulated(lambda qkv: False):
        found = results()
    window_module._kept_plan.cache_clear()
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_the_operation_for_compilers_takes_it_too():
    """Prevents: a compiled model on a GPU that computes logits, or does without the bias' gradient."""
    torch.manual_seed(0)
    inputs = [torch.randn(1, 9, 10, 3, 2, 16), torch.rand(2, 1, 1) * 5, torch.randn(2, 7, 7)]
    inputs = [x.to(DEVICE).requires_grad_() for x in inputs]
    options = Options((9, 10), True, None, 'sdpa')

    def results():
        out = map_attention(*inputs, (4, 4), options)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    calls = []
    with emulated(lambda qkv: calls.append(1)):  # None: not usable
        expected = results()
    assert calls
    with emulation():
        found = results()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shifted', [True, False])
def test_a_plan_made_on_the_device_is_that_of_numpy(shifted):
    """The same tokens share a window, and a region. Prevents: two plans that drift apart.

    Also: each token has a slot, each other slot is padding.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        B, H, W, Wh, Ww = (int(torch.randint(1, most, (), generator=generator)) for most in (3, 20, 20, 8, 8))
        window = min(H, Wh), min(W, Ww)
        mine = window_module._plan_on_device(B, H, W, window, shifted, DEVICE)
        right = window_layout(B, H, W, window, shifted, torch.device('cpu'))
        assert torch.equal(mine.gather[mine.scatter].cpu(), torch.arange(B * H * W))
        assert sorted([*mine.scatter.tolist(), *mine.pads.tolist()]) == list(range(len(mine.gather)))
        assert contents(mine) == contents(right)


def contents(plan):
    """Of each window: the token in each slot, -1 for padding, and for each slot those that it must not see."""
    real = torch.ones(len(plan.gather), dtype=torch.bool)
    real[plan.pads.cpu()] = False
    tokens = torch.where(real, plan.gather.cpu(), -1).view(-1, math.prod(plan.window)).tolist()
    found = []
    for group in plan.groups:
        for index in range(group.start, group.stop):
            outside = group.outside(index, index + 1)
            rows = [] if outside is None else outside.view(len(tokens[0]), -1).cpu().tolist()
            found.append((tokens[index], rows if any(map(any, rows)) else []))
    return sorted(found)


def test_where_it_can_be_used(monkeypatch):
    """Prevents: the kernel's refusal in the middle of a model, or its gradients where they must be deterministic."""
    monkeypatch.setattr(usable, '_is_nvidia', lambda x: True)
    monkeypatch.setattr(usable, 'capability', lambda device: (7, 5))
    computes = lambda d=32, N=64, dtype=torch.float16, nH=4: usable.torch_kernel_computes(  # noqa: E731
        torch.empty(2, N, 3, nH, d, dtype=dtype, device='meta')
    )
    assert computes() and computes(dtype=torch.float32)
    assert not computes(dtype=torch.float64) and not computes(dtype=torch.bfloat16)
    assert not computes(d=20) and not computes(N=56**2, nH=16)
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    assert not computes()
