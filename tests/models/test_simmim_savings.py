"""Masked image modelling with all that saves memory or time: the same step."""

import sys

import pytest
import torch
from support import run_process
from support.simmim_reference import drawn
from support.tiny_layers import assert_close
from support.versions import needs_compiler, needs_float16

from swinv2_mm import SimMIM
from swinv2_mm.compat import VERSION

TINY = dict(
    type='swinv2_mm.SwinTransformerV2',
    embed_dims=16,
    depths=(2, 1),
    num_heads=(2, 4),
    window_size=4,
    drop_path_rate=0.3,
)


def model(randomize, **backbone):
    return randomize(SimMIM(TINY | backbone, mask_patch_size=8, norm_target=5))


def step(mim, size=(40, 56), dtype=None):
    """The loss, ``(1,)``, and the gradients of all parameters, by name; drop path draws the same each time."""
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    mask = drawn(2, size[0] // 8, size[1] // 8)
    torch.manual_seed(0)
    mim.zero_grad()
    with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
        loss = mim(images.to(next(mim.parameters()).dtype), mode='loss', mask=mask)['loss']
    loss.backward()
    return loss.detach().view(1), {name: parameter.grad.clone() for name, parameter in mim.named_parameters()}


def assert_same_step(found, expected, tolerance):
    assert found[1].keys() == expected[1].keys()
    assert_close([found[0], *found[1].values()], [expected[0], *expected[1].values()], tolerance)


@pytest.mark.parametrize('savings', [dict(with_cp=True), dict(attn_chunk=1), dict(with_cp=[0], attn_chunk='auto')])
def test_savings_change_nothing(savings, randomize):
    """Recomputed blocks drop the same paths. Bug: the mask, or the drawing of one, repeated with other numbers."""
    plain, saving = model(randomize).double(), model(randomize, **savings).double()
    assert_same_step(step(saving), step(plain), 1e-9)


def check_half_precision(randomize, dtype):
    mim = model(randomize)
    for name, parameter in mim.named_parameters():
        if name.endswith('logit_scale'):
            parameter.data.clamp_(max=1)  # larger ones make more of rounding errors
    exact, half = step(mim), step(mim, dtype=dtype)
    assert half[0].dtype == torch.float32
    assert half[0].item() == pytest.approx(exact[0].item(), rel=0.01)
    for name, gradient in half[1].items():
        right = exact[1][name]
        assert gradient.isfinite().all()
        assert (gradient - right).norm() < 0.15 * right.norm() + 1e-3, name


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=needs_float16)])
def test_half_precision_is_close(dtype, randomize):
    """The loss itself is in float32. Bug: a step under autocast that is another one."""
    check_half_precision(randomize, dtype)


def test_weights_in_half_precision_have_a_loss_in_float32(randomize):
    """And paint in float32. Bug: targets normalised, or a million distances summed, in 8 bits."""
    mim = model(randomize).bfloat16()
    images = torch.randn(2, 3, 40, 56, dtype=torch.bfloat16)
    assert mim(images).dtype == torch.float32
    loss = mim(images, mode='loss')['loss']
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in mim.parameters())


CODE = """
import torch
from support.probe import randomize
from models.test_simmim_savings import check_half_precision
from swinv2_mm.models.kernels.choose import has_arithmetic

assert not has_arithmetic(torch.bfloat16)
check_half_precision(randomize, torch.bfloat16)
"""


@pytest.mark.skipif(VERSION < (2, 6), reason='this torch asks the processor itself, and no variable of the environment')
def test_half_precision_on_a_processor_without_it(monkeypatch):
    """Where the backbone leaves autocast. Bug: a map of another type than the weights, or the token, that meet it."""
    for name, value in {'ATEN_CPU_CAPABILITY': 'avx2', 'ONEDNN_MAX_CPU_ISA': 'AVX2'}.items():
        monkeypatch.setenv(name, value)
    done = run_process(sys.executable, '-c', CODE)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_the_compiled_backbone_takes_masks_of_all_sizes(randomize):
    """Two graphs without a break, whatever the sizes, and a third for images without a mask. Bug: the size of a mask,
    or its token, baked into the graph."""
    torch._dynamo.reset()
    plain, compiled = (model(randomize, drop_path_rate=0.0).double() for _ in range(2))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled.backbone.compile(backend=backend, dynamic=True, fullgraph=True)
    for size in ((64, 64), (40, 56), (56, 40), (96, 96), (24, 16)):
        assert_same_step(step(compiled, size), step(plain, size), 1e-9)
    with torch.no_grad():
        compiled.mask_token.add_(1.0)
        plain.mask_token.add_(1.0)
    assert_same_step(step(compiled), step(plain), 1e-9)
    assert 1 <= len(graphs) <= 2
    images = torch.rand(1, 3, 40, 56, dtype=torch.float64)
    assert_close(compiled.backbone(images), plain.backbone(images), 1e-9)
    torch._dynamo.reset()
