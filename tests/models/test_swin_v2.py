"""The backbone against independent computations, and the invariants of its design."""

import math

import pytest
import torch
from support import reference
from support.tiny_layers import SMALL, small
from support.versions import needs_float16

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import convert_state_dict


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize(('window', 'size'), [(8, 256), (16, 256), (8, (256, 384))])
def test_equals_hugging_face_on_shared_weights(window, size, dtype, randomize):
    """Every output level equals transformers' Swinv2Backbone. Prevents: any slip in the architecture or its names."""
    transformers = pytest.importorskip('transformers', reason='the peer to compare with is not installed')
    windows = [window] * 3
    config = transformers.Swinv2Config(
        image_size=size,
        embed_dim=24,
        depths=[2, 2, 2],
        num_heads=[2, 4, 8],
        window_size=window,
        pretrained_window_sizes=windows,
        out_indices=[1, 2, 3],
    )
    peer = randomize(transformers.Swinv2Backbone(config)).eval().to(dtype)
    for parameter in (p for n, p in peer.named_parameters() if n.endswith('logit_scale')):
        parameter.data.clamp_(max=3)  # float32 rounds logits near 100 by 1e-5, in any code
    ours = (
        SwinTransformerV2(
            embed_dims=24,
            depths=(2, 2, 2),
            num_heads=(2, 4, 8),
            out_indices=(0, 1, 2),
            window_size=window,
            pretrained_window_sizes=windows,
        )
        .eval()
        .to(dtype)
    )
    missing, unexpected = ours.load_state_dict(convert_state_dict(peer.state_dict()).weights, strict=False)
    assert not unexpected and {key.split('.')[0] for key in missing} == {'norm0', 'norm1', 'norm2'}
    for i in range(3):
        setattr(ours, f'norm{i}', torch.nn.Identity())  # the peer emits features before a norm
    x = torch.rand(1, 3, *((size, size) if isinstance(size, int) else size), dtype=dtype)
    with torch.no_grad():
        for mine, theirs in zip(ours(x), peer(x).feature_maps, strict=True):
            assert theirs.abs().mean() > 0.5
            # Of the largest: a query that is nearly zero has its direction rounded, in any code.
            assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize('mask_padding', [True, False])
@pytest.mark.parametrize(
    ('size', 'windows', 'pretrained'),
    [
        ((44, 36), [(4, 4), (4, 4)], [(4, 4), (4, 4)]),  # 11 x 9 tokens: both axes padded and shifted
        ((52, 28), [(5, 3), (4, 6)], [(8, 8), (4, 6)]),  # rectangular; 7 x 4 tokens under a 4 x 6 window
        ((24, 60), [(8, 8), (8, 8)], [(6, 6), (12, 12)]),  # 6 rows under a window of 8; bias from other windows
        ((29, 31), [(7, 2), (1, 1)], [(7, 2), (1, 1)]),  # no multiple of the patch; a window of 1
    ],
)
def test_equals_slow_loop_in_float64(size, windows, pretrained, mask_padding, randomize):
    """Sizes that fit nothing equal a per-pair loop written from the paper. Prevents: masks, shifts, pads off by one."""
    model = small(randomize, window_size=windows, pretrained_window_sizes=pretrained, mask_padding=mask_padding)
    model = model.double().eval()
    image = torch.rand(3, *size, dtype=torch.float64)
    expected = reference.backbone(
        model.state_dict(), image, SMALL['depths'], SMALL['num_heads'], windows, pretrained, mask_padding=mask_padding
    )
    with torch.no_grad():
        for mine, slow in zip(model(image[None]), expected, strict=True):
            torch.testing.assert_close(mine[0], slow, atol=1e-10, rtol=0)


def test_gradients_equal_slow_loop_in_float64(randomize):
    """Every parameter's gradient equals the loop's, in training mode. Prevents: wrong backward of the gathers, or
    gradients leaking through padding."""
    model = small(randomize).double()
    image = torch.rand(3, 44, 36, dtype=torch.float64)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    slow = reference.backbone(weights, image, SMALL['depths'], SMALL['num_heads'], [(4, 4)] * 2, [(4, 4)] * 2)
    sum(m.sin().sum() for m in slow).backward()
    sum(m.sin().sum() for m in model(image[None])).backward()
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_opposite_borders_do_not_see_each_other(randomize):
    """Changing one border column leaves features beyond the reach of its windows unchanged, at sizes that don't fit.

    Prevents: rolling before padding, or a mask fill too weak for logits of 100 (attention across image borders).
    """
    model = small(randomize, depths=(2,), num_heads=(2,), out_indices=(0,)).eval()
    for block in model.stages[0].blocks:
        block.attn.logit_scale.data.fill_(10)  # clamped: logits up to 100
    a = torch.rand(1, 3, 4, 44)
    b = a.clone()
    b[..., -4:] = 50 * torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        difference = (model(a)[0] - model(b)[0]).abs().amax(dim=(0, 1, 2))  # per column of 11
    assert difference[-1] > 0
    assert difference[:6].max() == 0


@pytest.mark.parametrize('size', [(33, 47), (64, 64), (20, 8)])
def test_batch_equals_single_images(size, randomize):
    """A batch of two gives what two batches of one give. Prevents: masks or indices that mix images."""
    model = small(randomize).eval()
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        together = model(x)
        apart = zip(model(x[:1]), model(x[1:]), strict=True)
    for both, single in zip(together, apart, strict=True):
        torch.testing.assert_close(both, torch.cat(single), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('mask_padding', [True, False])
def test_every_size_from_1_to_40(mask_padding, randomize):
    """Any size works and gives finite maps of ceil(side / stride). Prevents: assertions and NaN on small maps."""
    model = small(randomize, depths=(2, 1), mask_padding=mask_padding).eval()
    with torch.no_grad():
        for height in range(1, 41):
            for width in {height, 41 - height, 40}:
                for i, out in enumerate(model(torch.rand(1, 3, height, width))):
                    assert out.shape[2:] == (math.ceil(height / 4 / 2**i), math.ceil(width / 4 / 2**i))
                    assert out.isfinite().all()


def test_padding_does_not_change_features(randomize):
    """A window that overhangs the map equals the window shrunk to it. Prevents: padding taking part in attention."""
    x = torch.rand(1, 3, 20, 20)
    shrunk, large = (
        small(randomize, depths=(1,), num_heads=(2,), out_indices=(0,), window_size=w, pretrained_window_sizes=6).eval()
        for w in (5, 32)
    )
    with torch.no_grad():
        torch.testing.assert_close(large(x)[0], shrunk(x)[0], atol=1e-6, rtol=0)


def test_fresh_block_is_the_identity():
    """Post-norms start at zero. Prevents: an initialisation that loses SwinV2's stability."""
    block = small().stages[0].blocks[1]
    x = torch.rand(2, 9, 7, 16)
    assert torch.equal(block(x), x)


def test_every_parameter_gets_a_gradient(randomize):
    """Also with fewer outputs than stages. Prevents: parameters that are never used, which stop DDP."""
    model = small(randomize, depths=(2, 2, 2), num_heads=(1, 2, 4), out_indices=(0, 2))
    sum(out.square().sum() for out in model(torch.rand(1, 3, 50, 70))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize('rates', [dict(), dict(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)])
def test_checkpointing_changes_nothing(rates, randomize):
    """with_cp equals off in outputs and gradients, also with dropout. Prevents: other random numbers on recompute."""
    plain = small(randomize, **rates)
    recomputed = small(with_cp=True, **rates)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 40, 40)
    results = []
    for model in (plain, recomputed):
        torch.manual_seed(5)
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append((outs, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [pytest.param(torch.float16, marks=needs_float16), torch.bfloat16])
@pytest.mark.parametrize('mask_padding', [True, False])
def test_autocast_is_finite_on_zero_tokens(dtype, mask_padding, randomize):
    """Forward and backward are finite where queries and keys are exactly zero and logits are as large as they get.

    Prevents: NaN of F.normalize in half precision, and of mixed float16 / float32 gradient chains.
    """
    model = small(randomize, mask_padding=mask_padding)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, 'logit_scale'):
                module.logit_scale.fill_(10)
                module.q_bias.zero_()
        model.patch_embed.norm.bias.zero_()  # a constant patch becomes a zero token
        model.patch_embed.proj.bias.zero_()
    x = torch.zeros(1, 3, 36, 44)
    x[..., :12, :12] = torch.rand(12, 12)
    with torch.autocast('cpu', dtype):
        outs = model(x)
        loss = sum(out.float().square().mean() for out in outs)
    loss.backward()
    assert all(out.isfinite().all() for out in outs)
    assert [n for n, p in model.named_parameters() if not p.grad.isfinite().all()] == []


def test_half_precision_weights_work(randomize):
    """A model cast to bfloat16 stays close to itself. Prevents: tables or scales left in another dtype."""
    model = small(randomize).eval()
    x = torch.rand(1, 3, 36, 44)
    with torch.no_grad():
        full = model(x)
        half = model.bfloat16()(x.bfloat16())
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).abs().mean() < 0.1 * a.abs().mean()
