"""The fused window attention against its definition: on a GPU if there is one, else in Triton's interpreter."""

import importlib.util
import itertools
import subprocess
import sys

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.compat import COMPILES
from swinv2_mm.models.kernels.gpu import triton_attention
from swinv2_mm.models.kernels.gpu.triton_attention import fused_window_attention
from swinv2_mm.models.kernels.gpu.usable import why_not_triton as why_not

if not COMPILES:
    pytest.skip('the Triton kernels need torch 2.6', allow_module_level=True)
triton = pytest.importorskip('triton', reason='Triton exists for Linux only')
tl = pytest.importorskip('triton.language')
triton_kernels = pytest.importorskip('swinv2_mm.models.kernels.gpu.triton_kernels')
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
# B, H, W, nH, d, window, shift
CASES = {
    'whole windows': (2, 8, 8, 3, 16, (4, 4), (0, 0)),
    'shifted': (1, 8, 12, 2, 16, (4, 4), (2, 2)),
    'odd map, padded and shifted': (2, 9, 13, 2, 32, (4, 5), (2, 2)),
    'shifted along one axis': (1, 5, 11, 1, 24, (6, 3), (0, 1)),
    'map smaller than its window': (1, 3, 5, 2, 16, (7, 6), (0, 0)),
    'window of one row': (1, 6, 10, 1, 16, (1, 4), (0, 2)),
    'window of one token': (1, 3, 2, 1, 5, (1, 1), (0, 0)),
    'wide heads': (1, 4, 4, 1, 72, (4, 3), (0, 0)),
    'several tiles': (1, 6, 14, 1, 16, (6, 12), (0, 6)),
}


def arguments(B, H, W, nH, d, window, dtype=torch.float32, temperature=10.0):
    """Queries of all lengths, and a bias that matters beside the cosine."""
    qkv = torch.randn(B, H, W, 3, nH, d) * torch.rand(B, H, W, 3, nH, 1)
    table = torch.randn(nH, 2 * window[0] - 1, 2 * window[1] - 1)
    scale = temperature * (0.5 + torch.rand(nH))
    return [x.to(DEVICE).requires_grad_() for x in (qkv.to(dtype), table, scale)]


def definition(qkv, table, scale, window, shift):
    """Token by token: who is in my window of the rolled map, and was so near before the roll?"""
    B, H, W, _, nH, d = qkv.shape
    (Wh, Ww), (sh, sw) = window, shift
    Hp, Wp = -(-H // Wh) * Wh, -(-W // Ww) * Ww
    norm = qkv.square().sum(-1, keepdim=True).sqrt()
    unit = torch.where(norm > 1e-6, qkv / torch.where(norm > 1e-6, norm, 1), 0)
    cell = lambda y, x: (((y - sh) % Hp) // Wh, ((x - sw) % Wp) // Ww)  # noqa: E731
    out = []
    for b, y, x in itertools.product(range(B), range(H), range(W)):
        members = [
            (v, u)
            for v, u in itertools.product(range(H), range(W))
            if cell(v, u) == cell(y, x) and abs(v - y) < Wh and abs(u - x) < Ww
        ]
        v, u = torch.tensor(members).T
        cosines = (unit[b, y, x, 0] * unit[b, v, u, 1]).sum(-1)  # (members, nH)
        logits = scale * cosines + table[:, y - v + Wh - 1, x - u + Ww - 1].T
        out.append((logits.softmax(0)[..., None] * qkv[b, v, u, 2]).sum(0).flatten())
    return torch.stack(out).view(B, H, W, nH * d)


def compare(inputs, window, shift, tolerance, for_scale=1):
    """Output and gradients, each relative to its largest value.

    The gradient of the scale is a sum of many terms of both signs: rounding is ``for_scale`` times larger beside it.
    """
    exact = [x.detach().cpu().double().requires_grad_() for x in inputs]
    expected = definition(*exact, window, shift)
    out = fused_window_attention(*inputs, window, shift)
    assert (out.shape, out.dtype) == (expected.shape, inputs[0].dtype)
    grad = torch.randn(out.shape).to(out.dtype)
    results = (out, *torch.autograd.grad(out, inputs, grad.to(DEVICE)))
    expected = (expected, *torch.autograd.grad(expected, exact, grad.double()))
    for name, mine, right in zip(('out', 'qkv', 'table', 'scale'), results, expected, strict=True):
        error = (mine.detach().cpu().double() - right).abs().max() / right.abs().max().clamp_min(1e-30)
        assert error <= tolerance * (for_scale if name == 'scale' else 1), f'{name}: {error:.1e}'


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_float32_is_the_definition(case):
    """Outputs and all gradients. Prevents: a slot taken for another's token, region, offset or head."""
    *shape, window, shift = case
    compare(arguments(*shape, window), window, shift, 5e-6)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=['half', 'bfloat'])
@pytest.mark.parametrize('case', ['odd map, padded and shifted', 'several tiles'])
def test_half_precision_is_near_the_definition(case, dtype, tolerance):
    """Logits are as good as in float32. Prevents: unit vectors of 8 bits, times a scale of 30."""
    *shape, window, shift = CASES[case]
    compare(arguments(*shape, window, dtype, temperature=30.0), window, shift, tolerance, 10)


def test_a_large_window_in_larger_tiles(monkeypatch):
    """Tiles of 128, past others of 32. Prevents: slots between two tiles, or in both."""
    monkeypatch.setattr(triton_attention, 'MANY_SLOTS', 100)
    compare(arguments(1, 9, 15, 1, 16, (9, 15), torch.float16), (9, 15), (0, 0), 2e-3, 10)


@pytest.mark.parametrize('candidate', [1, 2])
def test_all_candidates_compute_the_same(candidate, monkeypatch):
    """Prevents: a tile that only a GPU tries, and that is wrong."""
    choice = lambda self, *_: self.candidates()[candidate]  # noqa: E731
    monkeypatch.setattr(triton_attention._Launch, '_fastest', choice)
    *shape, window, shift = CASES['several tiles']
    compare(arguments(*shape, window, torch.float16), window, shift, 2e-3, 10)


@pytest.mark.parametrize('case', ['odd map, padded and shifted', 'several tiles'])
def test_a_program_goes_past_several_windows(case, monkeypatch):
    """As with one program per window. Prevents: windows that no program visits, or two do."""
    *shape, window, shift = CASES[case]
    monkeypatch.setattr(triton_attention, 'TABLE_PROGRAMS', 10)
    monkeypatch.setattr(triton_attention, 'WINDOW_PROGRAMS', 4)
    compare(arguments(*shape, window), window, shift, 5e-6)


@pytest.mark.parametrize('window', [(4, 4), (9, 9)], ids=['one tile', 'several tiles'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_vectors_without_a_direction(dtype, window):
    """Zero, and lengths on either side of unit_vectors' limit. Prevents: NaN, or gradients of a million."""
    qkv, table, scale = arguments(1, 9, 9, 1, 16, window, dtype)
    with torch.no_grad():
        qkv[0, 0] = 0
        qkv[0, 1, :, :2] *= 5e-7 / qkv[0, 1, :, :2].float().norm(dim=-1, keepdim=True)
        qkv[0, 2, :, :2] *= 5e-6 / qkv[0, 2, :, :2].float().norm(dim=-1, keepdim=True)
    out = fused_window_attention(qkv, table, scale, window, (0, 0))
    (grad,) = torch.autograd.grad((out * 1e-3).sum(), qkv)  # in half precision 1 would overflow with or without us
    assert out.isfinite().all() and grad.isfinite().all()
    assert not grad[0, :2, :, :2].any()  # queries and keys
    assert grad[0, 2, :, 0].any() and grad[0, 2, :, 1].any() and grad[0, 0, :, 2].all()
    expected = definition(qkv.detach().cpu().double(), table.cpu().double(), scale.cpu().double(), window, (0, 0))
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(out.cpu().double(), expected, rtol=tolerance, atol=tolerance)


def test_the_largest_scale_and_values_in_half_precision():
    """Logits from -100 to 116, products of 65504. Prevents: infinities in exp or in the products, and from them NaN."""
    qkv, table, scale = arguments(1, 8, 8, 1, 32, (4, 4), torch.float16)
    with torch.no_grad():
        qkv[:, :, :, :2] *= 60000 / qkv[:, :, :, :2].abs().max()
        qkv[:, :, ::2, 1] = -qkv[:, :, ::2, 0]
        table.copy_(16 * torch.rand(table.shape))
        scale.fill_(100)
    compare([qkv, table, scale], (4, 4), (2, 2), 5e-3)


def test_regions_that_the_roll_brought_together_stay_apart():
    """Values of one border change nothing at the opposite one. Prevents: a mask that merely lowers the logits."""
    qkv, table, scale = arguments(1, 8, 4, 1, 16, (4, 4))
    with torch.no_grad():
        qkv[:, -1, :, 2] = 1e30
        table.fill_(16)
        out = fused_window_attention(qkv, table, scale, (4, 4), (2, 0))
    assert out[:, :2].abs().max() < 10 < out[:, -1].abs().max()


@triton.jit
def slots_kernel(tokens, places, window, H, W, Wh, Ww, sh, sw, N: tl.constexpr):
    slot = tl.arange(0, N)
    token, region, place = triton_kernels._locate(slot, window, H, W, Wh, Ww, sh, sw)
    tl.store(tokens + slot, tl.where(region >= 0, token, -1))
    tl.store(places + slot, place)


def test_slots_of_the_largest_window():
    """All 128 * 128 slots of a shifted window. Prevents: a division by multiplication that is inexact far out."""
    tokens, places = (torch.empty(128 * 128, dtype=torch.int64, device=DEVICE) for _ in range(2))
    slots_kernel[(1,)](tokens, places, 5, 200, 300, 128, 128, 64, 64, N=128 * 128)
    rows, columns = torch.arange(128)[:, None], torch.arange(128)[None, :]
    torch.testing.assert_close(places.cpu(), (rows * 255 + columns).flatten())
    y, x = (128 + 64 + rows) % 256, (2 * 128 + 64 + columns) % 384
    expected = torch.where((y < 200) & (x < 300), y * 300 + x, -1)
    torch.testing.assert_close(tokens.cpu(), expected.flatten())


def test_only_what_is_as_large_as_the_map_is_kept():
    """Prevents: logits, or copies of windows, that wait for the backward pass."""
    kept = []
    inputs = arguments(1, 9, 10, 2, 16, (4, 4))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)) or x, lambda x: x):
        fused_window_attention(*inputs, (4, 4), (2, 2))
    assert sorted(kept) == sorted([*(tuple(x.shape) for x in inputs), (1, 9, 10, 32), (2, 90)])


def test_torch_compile_calls_it_without_a_break():
    """In one graph, forward and backward. Prevents: a graph break in every block."""
    inputs = arguments(1, 6, 6, 1, 16, (4, 4))
    function = lambda *inputs: fused_window_attention(*inputs, (4, 4), (2, 2)).square().sum()  # noqa: E731
    expected = torch.autograd.grad(function(*inputs), inputs)
    compiled = torch.compile(function, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected, rtol=1e-6, atol=1e-6)
    torch.library.opcheck(triton_attention._attention, (*inputs, [4, 4], [2, 2]), atol=1e-4, rtol=1e-4)


def test_it_says_why_it_cannot_be_used(monkeypatch):
    """Prevents: an error from deep inside Triton, or a silent detour."""
    qkv, table, scale = arguments(1, 4, 4, 1, 16, (4, 4))
    assert why_not(qkv, (4, 4)) == ''
    assert 'float64' in why_not(qkv.double(), (4, 4))
    assert '129 channels' in why_not(qkv.new_empty(1, 4, 4, 3, 1, 129), (4, 4))
    assert '4 x 129' in why_not(qkv, (4, 129))
    monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    assert 'deterministic' in why_not(qkv, (4, 4))
    with torch.no_grad():
        assert why_not(qkv, (4, 4)) == ''
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert 'not installed' in why_not(qkv, (4, 4))
    monkeypatch.undo()
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    assert 'on cpu' in why_not(qkv.cpu(), (4, 4))
    with pytest.raises(ValueError, match='on cpu'):
        fused_window_attention(qkv.cpu(), table, scale, (4, 4), (0, 0))


@pytest.mark.parametrize(
    'wrong',
    [
        dict(table=torch.zeros(1, 7, 5)),
        dict(scale=torch.zeros(1, 1, 1)),
        dict(scale=torch.zeros(1, dtype=torch.float64)),
    ],
    ids=['table', 'scale', 'type'],
)
def test_wrong_shapes_are_refused(wrong):
    """Prevents: a kernel that reads beyond a tensor."""
    qkv, table, scale = arguments(1, 4, 4, 1, 16, (4, 4))
    with pytest.raises(ValueError, match=f'{next(iter(wrong))} is .* need'):
        fused_window_attention(qkv, **dict(table=table, scale=scale) | wrong, window=(4, 4), shift=(0, 0))


COMPILE = """
import os, torch, triton
from triton.backends.compiler import GPUTarget
from swinv2_mm.models.kernels.gpu import triton_attention, triton_kernels

class Device:
    get_current_device = get_current_stream = lambda self, *_: 0
    get_current_target = lambda self: GPUTarget('cuda', ARCH, 32)

def compile_only(self, grid):
    def run(*args, **kwargs):
        kernel = self.warmup(*args, grid=grid, **kwargs)
        print(self.__name__, kernel.metadata.shared)
    return run

triton.runtime.driver.set_active(Device())
triton.JITFunction.__getitem__ = compile_only
os.environ['TRITON_INTERPRET'] = '1'    # the kernels are imported already, and compiled
for window, candidate in CASES:
    triton_attention._Launch._fastest = lambda self, *_: self.candidates()[candidate]
    qkv = torch.zeros(1, 12, 12, 3, 1, 32, dtype=torch.bfloat16, requires_grad=True)
    table = torch.zeros(1, 2 * window[0] - 1, 2 * window[1] - 1)
    triton_attention.fused_window_attention(qkv, table, torch.ones(1), window, (2, 2)).sum().backward()
"""


@pytest.mark.parametrize('mask_padding', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_backbone_computes_the_same_with_either_backend(mask_padding, randomize, monkeypatch):
    """Maps and gradients, plain and shifted windows, padding masked or not.

    Prevents: another shift, window or normaliser handed to the kernels, or an argument that does nothing.
    """
    arch = dict(
        embed_dims=16,
        depths=(2, 1),
        num_heads=(1, 2),
        out_indices=(0, 1),
        window_size=[(4, 3), 2],
        drop_path_rate=0.0,
        mask_padding=mask_padding,
    )
    plain = randomize(SwinTransformerV2(**arch, attn_backend='sdpa')).to(DEVICE)
    fused = SwinTransformerV2(**arch, attn_backend='triton').to(DEVICE)
    fused.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 26, 38, device=DEVICE)
    results, launches = [], []
    launch = triton_attention._Launch.__call__
    monkeypatch.setattr(triton_attention._Launch, '__call__', lambda *a, **k: launches.append(1) or launch(*a, **k))
    for model in (plain, fused):
        maps = model(x)
        assert bool(launches) == (model is fused)
        sum((f * f.detach().cos()).sum() for f in maps).backward()
        results.append([*maps, *(p.grad for p in model.parameters())])
        with torch.no_grad():
            results[-1].extend(model.eval()(x))
    for a, b in zip(*results, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_the_backbone_says_why_triton_cannot_be_used():
    """By name, with the remedy. Prevents: a silent detour."""
    model = SwinTransformerV2(embed_dims=16, depths=(1,), num_heads=(1,), out_indices=(0,), attn_backend='triton')
    with pytest.raises(ValueError, match=r"there is no kernel for torch.float64\. Choose attn_backend='sdpa'"):
        model.double().to(DEVICE)(torch.rand(1, 3, 8, 8, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize('arch', [80, pytest.param(90, marks=pytest.mark.slow)], ids=['Ampere', 'Hopper'])
def test_all_kernels_compile(arch, tmp_path, monkeypatch):
    """To machine code that fits the shared memory of a small device. Prevents: what the interpreter lets pass."""
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    cases = [((7, 7), 0), ((9, 9), 0), ((9, 9), 1)]
    cases += [((9, 9), 2), ((32, 32), 1)] if arch == 90 else []
    command = [sys.executable, '-c', COMPILE.replace('ARCH', str(arch)).replace('CASES', str(cases))]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    shared = [line.split() for line in result.stdout.splitlines()]
    assert {name.removesuffix('_kernel') for name, _ in shared} == {
        'forward',
        'forward_window',
        'backward_q',
        'backward_kv',
        'backward_table',
    }
    assert max(int(size) for _, size in shared) <= 99 * 1024
