"""Masked image modelling: the loss and its gradients are those of others, and hidden pixels are hidden."""

import math

import pytest
import torch
from support import simmim_reference as reference
from support.tiny_layers import assert_close

from swinv2_mm import SimMIM
from swinv2_mm.models.simmim import draw_mask, normalise_locally

TINY = dict(embed_dims=16, depths=(1, 1), num_heads=(1, 2), window_size=4, drop_path_rate=0.0)


def tiny(randomize, backbone=None, **options):
    """Last map of stride 8."""
    options = dict(mask_patch_size=8, norm_target=None) | options
    return randomize(SimMIM(dict(type='swinv2_mm.SwinTransformerV2', **TINY | (backbone or {})), **options))


def picture(batch=2, height=32, width=32, channels=3):
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize('norm_target', [None, 47])
@pytest.mark.parametrize(('side', 'windows'), [(128, [8, 8, 8, 4]), (192, [12, 12, 12, 6])])
def test_a_step_equals_that_of_hugging_face(side, windows, norm_target, randomize):
    """The loss and the gradients of all parameters. Bug: a mask that is transposed or of another scale, a token in
    another place, a decoder of another order, a loss over all pixels."""
    pytest.importorskip('transformers', reason='the peer to compare with is not installed')
    peer = randomize(reference.hugging_face(side, windows[0])).double()
    for parameter in (p for n, p in peer.named_parameters() if n.endswith('logit_scale')):
        parameter.data.clamp_(max=3)
    model = reference.ours_like(peer, windows, norm_target=norm_target)
    batch = 1 if norm_target else 2
    images, mask = picture(batch, side, side).double(), reference.drawn(batch, side // 32, side // 32)
    painted, own = reference.painted_by(peer, images, mask)
    expected = own if norm_target is None else reference.loss(images, painted, mask, norm_target)
    loss = model(images, mode='loss', mask=mask)['loss']
    # Hugging Face rounds its coordinates to float32.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert_close([model(images, mask=mask)], [painted], 1e-6)
    expected.backward()
    loss.backward()
    gradients = reference.in_our_names({name: parameter.grad for name, parameter in peer.named_parameters()})
    assert gradients.keys() == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        assert gradients[name].abs().max() > 0, name
        assert_close([parameter.grad], [gradients[name]], 1e-5)


@pytest.mark.parametrize('size', [(20, 20), (7, 30)])
@pytest.mark.parametrize('side', [3, 15, 47])
def test_targets_are_normalised_by_their_square(side, size):
    """As pixel by pixel, at borders and with squares larger than the image. Bug: pixels beyond the border count as
    zeros, or a square that lies a pixel off."""
    images = 50 + 3 * picture(2, *size).double()
    expected = torch.stack([reference.normalised(image, side) for image in images])
    torch.testing.assert_close(normalise_locally(images, side), expected, rtol=1e-8, atol=1e-8)


def test_a_flat_image_has_finite_targets():
    """Rounding makes variances below zero of it. Bug: NaN in the first clear sky."""
    for value in (0.1, 1.3, 2.1, 100.3, 250.7):
        assert normalise_locally(torch.full((1, 3, 64, 64), value), 47).abs().max() < 1


def test_the_loss_is_the_mean_over_hidden_pixels(randomize):
    """For each image its own mask. Bug: a mean over visible pixels, over the batch or over channels."""
    images, painted = picture(3, 24, 40), picture(3, 24, 40).flip(0)
    mask = reference.drawn(3, 3, 5)
    for norm_target in (None, 5):
        found = tiny(randomize, norm_target=norm_target).loss(images, painted, mask)
        torch.testing.assert_close(found, reference.loss(images, painted, mask, norm_target), rtol=1e-5, atol=0)


def test_a_mask_hides_as_many_patches_as_microsoft_s():
    """In each image, others in each, and the same again from the same state. Bug: one patch more or less, a mask that
    all images share, a generator of its own, which no seed of a run reaches."""
    for ratio in (0.6, 0.1, 0.25, 0.4, 0.55, 0.56, 0.75, 0.9, 0.99):
        for rows, columns in ((1, 1), (1, 2), (3, 4), (5, 5), (6, 6), (6, 10), (7, 20), (12, 12)):
            mask = draw_mask(2, (rows, columns), ratio)
            assert mask.shape == (2, rows, columns) and mask.dtype == torch.bool
            assert mask.flatten(1).sum(1).tolist() == [reference.hidden_count(rows * columns, ratio)] * 2
    torch.manual_seed(5)
    first, second = draw_mask(8, (6, 6), 0.6), draw_mask(8, (6, 6), 0.6)
    torch.manual_seed(5)
    assert torch.equal(draw_mask(8, (6, 6), 0.6), first) and not torch.equal(first, second)
    assert len({tuple(one.flatten().tolist()) for one in first}) == 8


def test_every_patch_is_hidden_equally_often():
    """Bug: a mask that prefers a corner."""
    often = draw_mask(20000, (3, 3), 0.5).float().mean(0)
    assert (often - 5 / 9).abs().max() < 5 * math.sqrt(0.25 / 20000)


def test_hidden_pixels_do_not_reach_the_encoder(randomize):
    """Bug: a mask behind the first block, or one that is a patch off."""
    model = tiny(randomize)
    images, mask = picture(2, 32, 48), reference.drawn(2, 4, 6)
    hidden = mask.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    noise = picture(2, 32, 48).flip(-1)
    painted = model(images, mask=mask)
    assert torch.equal(model(torch.where(hidden, noise, images), mask=mask), painted)
    assert not torch.equal(model(torch.where(hidden, images, noise), mask=mask), painted)
    assert not torch.equal(model(images, mask=mask.roll(1, -1)), painted)


def test_visible_pixels_are_no_part_of_the_loss(randomize):
    """Targets as they are: a change of visible pixels, or of what is painted there, changes nothing. Bug: the loss
    rewards copying."""
    model = tiny(randomize)
    images, painted, mask = picture(), picture().flip(-1), reference.drawn(2, 4, 4)
    hidden = mask.repeat_interleave(8, 1).repeat_interleave(8, 2).unsqueeze(1)
    loss = model.loss(images, painted, mask)
    other = torch.where(hidden, images, 100 * images)
    assert torch.equal(model.loss(other, painted, mask), loss)
    assert torch.equal(model.loss(images, torch.where(hidden, painted, 100 * painted), mask), loss)
    assert not torch.equal(model.loss(torch.where(hidden, 100 * images, images), painted, mask), loss)


@pytest.mark.parametrize('size', [(32, 32), (16, 48), (48, 16), (40, 72)])
@pytest.mark.parametrize('channels', [1, 3, 4])
def test_images_of_any_size_and_any_channels(size, channels, randomize):
    """Bug: a map taken for a square, or a decoder that paints three channels."""
    model = tiny(randomize, dict(in_channels=channels))
    images = picture(2, *size, channels)
    assert model(images).shape == images.shape
    loss = model(images, mode='loss')['loss']
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_a_mask_may_be_finer_than_the_last_map(randomize):
    """Patches of 16 and of 4 with stride 32, on images of 48 pixels, whose last map is padded. Bug: painted images of
    64 pixels, or tokens hidden where they are seen."""
    backbone = dict(depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    for side in (16, 4):
        model = tiny(randomize, backbone, mask_patch_size=side)
        images, mask = picture(2, 48, 48), reference.drawn(2, 48 // side, 48 // side)
        painted = model(images, mask=mask)
        assert model.stride == 32 and painted.shape == images.shape
        twice = model(torch.cat([images, images]), mask=torch.cat([mask, mask]))[:2]
        assert_close([painted], [twice], 1e-5)  # libraries round by the size of a batch
        hidden = mask.repeat_interleave(side, 1).repeat_interleave(side, 2).unsqueeze(1)
        assert torch.equal(model(torch.where(hidden, 0.0, images), mask=mask), painted)
        expected = reference.loss(images, painted, mask, None)
        torch.testing.assert_close(model(images, mode='loss', mask=mask)['loss'], expected, rtol=1e-5, atol=0)


def test_fresh_parameters_are_microsoft_s(randomize):
    """A token of deviation 0.02, and no norm in front of stages that the decoder does not read. Bug: a token of zeros,
    or parameters that never get a gradient, at which data parallelism stops."""
    model = SimMIM(dict(type='swinv2_mm.SwinTransformerV2', **TINY | dict(embed_dims=512)))
    assert 0.015 < model.mask_token.std() < 0.025
    assert {name for name, _ in model.backbone.named_parameters() if name.startswith('norm')} == {
        'norm1.weight',
        'norm1.bias',
    }


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(mask_patch_size=6), r'mask_patch_size=6: take a multiple of patch_size=4'),
        (dict(mask_patch_size=0), r'mask_patch_size=0 must be a whole number'),
        (dict(mask_ratio=0), r'mask_ratio=0: take a number above 0'),
        (dict(mask_ratio=1.0), r'mask_ratio=1\.0: take a number above 0'),
        (dict(mask_ratio='0.6'), r"mask_ratio='0\.6': take a number"),
        (dict(norm_target=46), r'norm_target=46: take an odd number'),
        (dict(norm_target=1), r'norm_target=1 must be a whole number, at least 3'),
        (dict(norm_target=True), r'norm_target=True must be a whole number'),
        (dict(backbone=dict(out_indices=(0, 1))), r'backbone\.out_indices=\(0, 1\) of SimMIM: leave it out'),
    ],
)
def test_wrong_arguments_are_named(options, message, randomize):
    """Bug: an error in the first step, or targets that nobody asked for."""
    with pytest.raises(ValueError, match=message):
        tiny(randomize, **options)


def test_another_backbone_is_refused():
    """Bug: a missing attribute of a class that nobody has heard of."""
    for kind in ('Conv2d', 'swinv2_mm.SwinTransformer', torch.nn.Identity, None):
        with pytest.raises(ValueError, match=r"backbone\.type=.* of SimMIM: set it to 'swinv2_mm\.SwinTransformerV2'"):
            SimMIM(dict(type=kind))


def test_wrong_images_and_masks_are_named(randomize):
    """Bug: a mask that is broadcast over the batch, integers that index, and images of which an edge is left out."""
    model, images = tiny(randomize), picture(2, 32, 48)
    for mask in (None, torch.zeros(2, 4, 6, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r'inputs of 32 x 44 pixels: .*mask_patch_size.* multiples of 8'):
            model(images[..., :44], mask=mask)
    for shape in ((2, 6, 4), (1, 4, 6), (4, 6), (2, 8, 12)):
        with pytest.raises(ValueError, match=r'mask of .*give a boolean mask of shape \(2, 4, 6\).*None to draw one'):
            model(images, mask=torch.zeros(shape, dtype=torch.bool))
    for dtype in (torch.long, torch.float32):
        with pytest.raises(ValueError, match=f'mask of {dtype} .*boolean'):
            model(images, mask=torch.zeros(2, 4, 6, dtype=dtype))
