"""Masked image modelling on a GPU: the step of the CPU in float64, without waiting; elsewhere the CPU stands in."""

import copy

import pytest
import torch
from support.simmim_reference import drawn
from support.tiny_layers import assert_close

from swinv2_mm import SimMIM

pytestmark = pytest.mark.gpu
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


def tiny(randomize):
    backbone = dict(embed_dims=32, depths=(1, 1), num_heads=(1, 2), window_size=4, drop_path_rate=0.0)
    model = randomize(SimMIM(dict(type='swinv2_mm.SwinTransformerV2', **backbone), mask_patch_size=8))
    for name, parameter in model.named_parameters():
        if name.endswith('logit_scale'):
            parameter.data.clamp_(max=1)
    return model


def test_a_step_equals_float64(randomize):
    """The loss and all gradients. Bug: a mask or a target on another device, or squares averaged in another way."""
    exact = tiny(randomize).double()
    model = copy.deepcopy(exact).float().to(DEVICE)
    images, mask = torch.randn(2, 3, 64, 96), drawn(2, 8, 12)
    expected = exact(images.double(), mode='loss', mask=mask)['loss']
    found = model(images.to(DEVICE), mode='loss', mask=mask.to(DEVICE))['loss']
    expected.backward()
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert_close([p.grad.cpu() for p in model.parameters()], [p.grad for p in exact.parameters()], 2e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='a CPU has nothing to wait for: it needs a GPU')
def test_a_steady_step_waits_for_nothing(randomize):
    """With a mask of its own. Bug: patches counted, or an index copied, by the CPU in each step."""
    model, images = tiny(randomize).cuda(), torch.randn(2, 3, 64, 96, device='cuda')

    def step():
        with torch.autocast('cuda', torch.bfloat16):
            loss = model(images, mode='loss')['loss']
        loss.backward()

    step()
    step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
