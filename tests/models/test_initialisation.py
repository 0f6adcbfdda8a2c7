"""Start values: Microsoft's, and those for a short training from random weights."""

import pytest
import torch
from torch import nn

from swinv2_mm import SwinTransformerV2

TINY = dict(embed_dims=32, depths=(1, 2), num_heads=(1, 2), window_size=4, out_indices=(0, 1))


def started(**options):
    torch.manual_seed(0)
    return SwinTransformerV2(**TINY | options)


def test_microsofts_start_is_the_default():
    """Blocks are the identity, linear layers have a deviation of 0.02. Bug: another start for everybody."""
    model = started()
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert all(not norm.weight.any() for block in blocks for norm in (block.norm1, block.norm2))
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert [layer.weight.std().item() for layer in linear] == pytest.approx([0.02] * len(linear), rel=0.3)


def test_from_scratch_opens_the_branches_and_keeps_the_scale():
    """Norms start at a half, linear layers keep the scale of what they get, the MLP of the position bias stays small.

    Bug: a position bias that is noise at the start, a layer that is left out, a bias that is not zero.
    """
    model = started(from_scratch=True)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            expected = 0.02 if 'cpb_mlp' in name else layer.in_features**-0.5
            assert layer.weight.std().item() == pytest.approx(expected, rel=0.3), name
        for parameter in ('bias', 'q_bias', 'v_bias'):
            value = getattr(layer, parameter, None)
            assert value is None or isinstance(layer, nn.Conv2d) or not value.any(), (name, parameter)
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert all((norm.weight == 0.5).all() for block in blocks for norm in (block.norm1, block.norm2))
    others = model.patch_embed.norm, model.stages[1].downsample.norm, model.norm0, model.norm1
    assert all((norm.weight == 1).all() for norm in others)


def test_loaded_weights_replace_either_start(randomize):
    """Bug: an argument that changes what a checkpoint computes, or what it holds."""
    trained = randomize(started())
    x = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        expected = trained.eval()(x)
        model = started(from_scratch=True).eval()
        model.load_state_dict(trained.state_dict())
        assert all(torch.equal(out, other) for out, other in zip(model(x), expected, strict=True))


def test_a_flag_is_a_flag():
    """Bug: from_scratch='False', which is true."""
    with pytest.raises(ValueError, match='from_scratch'):
        started(from_scratch='False')
