"""The backbone against independent computations, and the invariants of its design."""

import copy
import math
import pickle

import pytest
import torch
from mmengine.hooks import EMAHook
from support import reference

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import convert_state_dict

TINY = dict(embed_dims=16, depths=(2, 2), num_heads=(2, 4), out_indices=(0, 1), drop_path_rate=0.0)


def build(randomize=None, **kwargs):
    model = SwinTransformerV2(**{**TINY, **kwargs})
    return model if randomize is None else randomize(model)


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
    model = build(randomize, window_size=windows, pretrained_window_sizes=pretrained, mask_padding=mask_padding)
    model = model.double().eval()
    image = torch.rand(3, *size, dtype=torch.float64)
    expected = reference.backbone(
        model.state_dict(), image, TINY['depths'], TINY['num_heads'], windows, pretrained, mask_padding=mask_padding
    )
    with torch.no_grad():
        for mine, slow in zip(model(image[None]), expected, strict=True):
            torch.testing.assert_close(mine[0], slow, atol=1e-10, rtol=0)


def test_gradients_equal_slow_loop_in_float64(randomize):
    """Every parameter's gradient equals the loop's, in training mode. Prevents: wrong backward of the gathers, or
    gradients leaking through padding."""
    model = build(randomize, window_size=4).double()
    image = torch.rand(3, 44, 36, dtype=torch.float64)
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    slow = reference.backbone(weights, image, TINY['depths'], TINY['num_heads'], [(4, 4)] * 2, [(4, 4)] * 2)
    sum(m.sin().sum() for m in slow).backward()
    sum(m.sin().sum() for m in model(image[None])).backward()
    for name, parameter in model.named_parameters():
        expected = weights[name].grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)


def test_opposite_borders_do_not_see_each_other(randomize):
    """Changing one border column leaves features beyond the reach of its windows unchanged, at sizes that don't fit.

    Prevents: rolling before padding, or a mask fill too weak for logits of 100 (attention across image borders).
    """
    model = build(randomize, depths=(2,), num_heads=(2,), out_indices=(0,), window_size=4).eval()
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
    model = build(randomize, window_size=4).eval()
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        together = model(x)
        apart = zip(model(x[:1]), model(x[1:]), strict=True)
    for both, single in zip(together, apart, strict=True):
        torch.testing.assert_close(both, torch.cat(single), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('mask_padding', [True, False])
def test_every_size_from_1_to_40(mask_padding, randomize):
    """Any size works and gives finite maps of ceil(side / stride). Prevents: assertions and NaN on small maps."""
    model = build(randomize, window_size=4, depths=(2, 1), mask_padding=mask_padding).eval()
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
        build(randomize, depths=(1,), num_heads=(2,), out_indices=(0,), window_size=w, pretrained_window_sizes=6).eval()
        for w in (5, 32)
    )
    with torch.no_grad():
        torch.testing.assert_close(large(x)[0], shrunk(x)[0], atol=1e-6, rtol=0)


def test_fresh_block_is_the_identity():
    """Post-norms start at zero. Prevents: an initialisation that loses SwinV2's stability."""
    block = build().stages[0].blocks[1]
    x = torch.rand(2, 9, 7, 16)
    assert torch.equal(block(x), x)


def test_every_parameter_gets_a_gradient(randomize):
    """Also with fewer outputs than stages. Prevents: parameters that are never used, which stop DDP."""
    model = randomize(
        SwinTransformerV2(
            embed_dims=16, depths=(2, 2, 2), num_heads=(1, 2, 4), out_indices=(0, 2), window_size=4, drop_path_rate=0.0
        )
    )
    sum(out.square().sum() for out in model(torch.rand(1, 3, 50, 70))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


@pytest.mark.parametrize('rates', [dict(), dict(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.5)])
def test_checkpointing_changes_nothing(rates, randomize):
    """with_cp equals off in outputs and gradients, also with dropout. Prevents: other random numbers on recompute."""
    plain = build(randomize, window_size=4, **rates)
    recomputed = build(window_size=4, with_cp=True, **rates)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 40, 40)
    results = []
    for model in (plain, recomputed):
        torch.manual_seed(5)
        outs = model(x)
        sum(out.square().sum() for out in outs).backward()
        results.append((outs, [p.grad for p in model.parameters()]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mask_padding', [True, False])
def test_autocast_is_finite_on_zero_tokens(dtype, mask_padding, randomize):
    """Forward and backward are finite where queries and keys are exactly zero and logits are as large as they get.

    Prevents: NaN of F.normalize in half precision, and of mixed float16 / float32 gradient chains.
    """
    model = build(randomize, window_size=4, mask_padding=mask_padding)
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
    model = build(randomize, window_size=4).eval()
    x = torch.rand(1, 3, 36, 44)
    with torch.no_grad():
        full = model(x)
        half = model.bfloat16()(x.bfloat16())
    for a, b in zip(full, half, strict=True):
        assert b.dtype == torch.bfloat16
        assert (a - b.float()).abs().mean() < 0.1 * a.abs().mean()


def test_state_dict_holds_learned_parameters_and_their_normaliser(randomize):
    """Before and after a forward pass in eval. Prevents: tables and caches in checkpoints, bound to one window."""
    model = build(randomize, window_size=4)
    names = {name for name, _ in model.named_parameters()}
    model.eval()(torch.rand(1, 3, 32, 32))
    assert set(model.state_dict()) == names | {'pretrained_windows'}


def test_weights_load_into_another_window(randomize):
    """Prevents: anything in the state_dict that depends on the window."""
    build(window_size=[(6, 3), 12]).load_state_dict(build(randomize, window_size=4).state_dict(), strict=True)


@pytest.mark.parametrize('copier', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_caches_of_their_own(copier, randomize):
    """A used model can be copied, and the copy follows its own weights. Prevents: a kept bias shared with the copy."""
    model = build(randomize, window_size=4).eval()
    x = torch.rand(1, 3, 36, 36)
    with torch.no_grad():
        before = model(x)
        twin = copier(model)
        assert all(torch.equal(a, b) for a, b in zip(before, twin(x), strict=True))
        for parameter in twin.parameters():
            parameter.mul_(1.5)
        assert all(torch.equal(a, b) for a, b in zip(before, model(x), strict=True))
        fresh = build(window_size=4).eval()
        fresh.load_state_dict(twin.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(fresh(x), twin(x), strict=True))


@pytest.mark.parametrize('change', ['copy', 'data', 'load', 'double'])
def test_kept_bias_follows_its_weights(change, randomize):
    """In eval, any way to change weights is noticed. Prevents: a stale position bias, e.g. after an EMA swap, which
    copies into ``param.data`` and leaves the version counter alone."""
    model, other = build(randomize, window_size=4).eval(), randomize(build(window_size=4), seed=1).eval()
    x = torch.rand(1, 3, 36, 36)
    with torch.no_grad():
        model(x)
        if change == 'load':
            model.load_state_dict(other.state_dict())
        elif change == 'double':
            model, other, x = model.double(), other.double(), x.double()
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            if change == 'data':
                mine.data.copy_(theirs.data)
            elif change in ('copy', 'double'):
                mine.copy_(theirs)
        assert all(torch.equal(a, b) for a, b in zip(model(x), other(x), strict=True))


def test_mmengine_ema_swap_is_noticed(randomize):
    """mmengine's EMAHook swaps averaged weights in and out of a model in eval. Prevents: validating a mixture."""
    model, other = build(randomize, window_size=4).eval(), randomize(build(window_size=4), seed=1).eval()
    hook = EMAHook()
    hook.src_model, hook.ema_model = model, type('Averaged', (), dict(module=other, update_buffers=False))()
    x = torch.rand(1, 3, 36, 36)
    with torch.no_grad():
        mine, theirs = model(x), other(x)
        hook._swap_ema_parameters()
        assert all(torch.equal(a, b) for a, b in zip(model(x), theirs, strict=True))
        hook._swap_ema_parameters()
        assert all(torch.equal(a, b) for a, b in zip(model(x), mine, strict=True))


def test_eval_mode_still_trains(randomize):
    """Gradients in eval mode reach the position bias. Prevents: the kept bias cutting the graph of a model that is
    fine-tuned in eval, and tensors made under inference_mode entering a training step."""
    model = build(randomize, window_size=4).eval()
    x = torch.rand(1, 3, 36, 36)
    with torch.inference_mode():
        model(x)
    sum(out.square().sum() for out in model(x)).backward()
    assert all(p.grad.abs().max() > 0 for p in model.stages[0].blocks[0].attn.cpb_mlp.parameters())


@pytest.mark.parametrize('frozen', range(-1, 3))
def test_frozen_stages_stay_frozen(frozen, randomize):
    """After .train() too: no gradient, eval mode, no drop path. Prevents: frozen layers that wake up each epoch."""
    model = build(randomize, window_size=4, frozen_stages=frozen, drop_path_rate=0.5, drop_rate=0.5)
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
        assert all(torch.equal(a, b) for a, b in zip(model(x), model(x), strict=True))
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
    block = build(drop_path_rate=0.25).stages[-1].blocks[-1]
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
        build(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_typos_are_refused():
    """Prevents: an option that is silently ignored."""
    with pytest.raises(TypeError, match='windows_size'):
        build(windows_size=8)
