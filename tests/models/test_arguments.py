"""What the backbone's arguments make of it, and which are refused."""

import math

import pytest
import torch
from support.tiny_layers import assert_identical, small

from swinv2_mm import SwinTransformerV2


@pytest.mark.parametrize('frozen', range(-1, 3))
def test_frozen_stages_stay_frozen(frozen, randomize):
    """After .train() too: no gradient, eval mode, no drop path. Prevents: frozen layers that wake up each epoch."""
    model = small(randomize, frozen_stages=frozen, drop_path_rate=0.5, drop_rate=0.5)
    assert model.eval() is model and model.train() is model
    expected = set()
    if frozen >= 0:
        expected |= {n for n, _ in model.named_parameters() if n.startswith('patch_embed')}
    for i in range(frozen):
        expected |= {n for n, _ in model.named_parameters() if n.startswith((f'stages.{i}.', f'norm{i}.'))}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == expected
    assert all(not m.training for i in range(max(frozen, 0)) for m in model.stages[i].modules())
    if frozen == 2:
        x = torch.rand(1, 3, 36, 36)
        assert_identical(model(x), model(x))
    else:
        sum(out.square().sum() for out in model(torch.rand(1, 3, 36, 36))).backward()
        assert {n for n, p in model.named_parameters() if p.grad is None} == expected


def test_drop_path_grows_linearly_over_depth():
    """From 0 at the first block to the given rate at the last. Prevents: indexing the rates per stage."""
    model = SwinTransformerV2('tiny', drop_path_rate=0.22)
    for name in ('drop_path1', 'drop_path2'):
        rates = [getattr(block, name).drop_prob for stage in model.stages for block in stage.blocks]
        assert rates == pytest.approx([0.02 * i for i in range(12)])


def test_drop_path_keeps_the_expectation():
    """A branch is dropped per sample as a whole and scaled by 1 / keep. Prevents: dropping pixels, or a biased mean."""
    block = small(drop_path_rate=0.25).stages[-1].blocks[-1]
    y = block.drop_path1(torch.ones(4000, 2, 2, 1), torch.ones(4000, 2, 2, 1)).flatten(1) - 1
    assert torch.equal(y, y[:, :1].expand(-1, 4))
    assert y[:, 0].unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(('arch', 'millions'), [('tiny', 28), ('small', 50), ('base', 88), ('large', 197)])
def test_sizes_have_the_published_number_of_parameters(arch, millions):
    """Prevents: a wrong depth or width. Published figures include a classifier of 1000 classes and a last norm."""
    with torch.device('meta'):
        model = SwinTransformerV2(arch, out_indices=(3,))
    total = sum(p.numel() for p in model.parameters()) + 1000 * (model.num_features[-1] + 1)
    assert round(total / 1e6) == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(
    ('arch', 'extra'), [('base', {}), ('huge', {2: [5, 11, 17]}), ('giant', {2: [5, 11, 17, 23, 29, 35, 41]})]
)
def test_extra_norms_every_six_blocks(arch, extra):
    """Huge and giant normalise the main branch (paper, section 3.5). Prevents: unstable largest models."""
    with torch.device('meta'):
        model = SwinTransformerV2(arch)
    found = {
        i: [j for j, block in enumerate(stage.blocks) if block.norm3 is not None]
        for i, stage in enumerate(model.stages)
    }
    assert {i: blocks for i, blocks in found.items() if blocks} == extra
    assert all(
        dim // heads == 32
        for dim, heads in zip(
            model.num_features, [stage.blocks[0].attn.num_heads for stage in model.stages], strict=True
        )
    )


def test_initialisation_is_microsofts():
    """Linear 0.02, logit scale log(10), biases zero. Prevents: a silent change of the training's start."""
    model = SwinTransformerV2('tiny')
    attn = model.stages[2].blocks[3].attn
    assert attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert attn.cpb_mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(attn.logit_scale, torch.full((12, 1, 1), math.log(10)))
    assert not attn.q_bias.any() and not attn.v_bias.any() and not attn.proj.bias.any()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(arch='medium'), ['arch', 'medium', 'tiny']),
        (dict(window_size=0), ['window_size', '0']),
        (dict(window_size=(8, 8, 8)), ['window_size', '2 stages', '(Wh, Ww)']),
        (dict(window_size=[(8, 8, 8), 8]), ['window_size[0]', 'pair']),
        (dict(window_size=7.5), ['window_size', '7.5']),
        (dict(num_heads=(3, 4)), ['num_heads[0]=3', '16']),
        (dict(num_heads=(2,)), ['num_heads', '1 entries']),
        (dict(depths=(2, -1)), ['depths[1]', '-1']),
        (dict(depths=()), ['depths']),
        (dict(out_indices=(0, 2)), ['out_indices', '[0, 1]']),
        (dict(out_indices=(1, 0)), ['out_indices', 'rising']),
        (dict(out_indices=()), ['out_indices']),
        (dict(frozen_stages=3), ['frozen_stages', '3']),
        (dict(drop_path_rate=1.0), ['drop_path_rate', '1.0']),
        (dict(attn_drop_rate=-0.1), ['attn_drop_rate', '-0.1']),
        (dict(mlp_ratio=0), ['mlp_ratio', '0']),
        (dict(patch_size=0), ['patch_size', '0']),
        (dict(in_channels=True), ['in_channels', 'True']),
    ],
)
def test_bad_values_are_named(arguments, words):
    """A wrong value is refused with its name and the remedy. Prevents: failures deep inside the first forward."""
    with pytest.raises(ValueError) as error:
        small(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_typos_are_refused():
    """Prevents: an option that is silently ignored."""
    with pytest.raises(TypeError, match='windows_size'):
        small(windows_size=8)
