"""One set of weights at several windows; windows that fit their maps."""

import copy

import pytest
import torch
from support import reference
from support.tiny_layers import assert_identical
from transformers import Swinv2Backbone, Swinv2Config

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import convert_state_dict
from swinv2_mm.models.kernels import cpp
from swinv2_mm.models.position_bias import spread_over_slots
from swinv2_mm.models.window import effective_window, fit_window

SMALL = dict(embed_dims=8, depths=(2, 1), num_heads=(1, 2), out_indices=(0, 1))


@pytest.mark.parametrize('pretrained', [(8, 8), (6, 9)])
@pytest.mark.parametrize('window', [(16, 16), (24, 10)])
def test_a_scaled_window_keeps_the_bias_of_known_offsets(pretrained, window, randomize):
    """For offsets inside the pretrained window the bias is the original's. Prevents: a bias stretched to the window."""
    model = randomize(SwinTransformerV2(window_size=[pretrained, pretrained], **SMALL)).eval()
    attn = model.stages[0].blocks[0].attn
    with torch.no_grad():
        before, after = (spread_over_slots(attn.position_bias(size)) for size in (pretrained, window))
    rows, cols = torch.meshgrid(torch.arange(pretrained[0]), torch.arange(pretrained[1]), indexing='ij')
    slots = (rows * window[1] + cols).flatten()
    torch.testing.assert_close(after[:, slots][:, :, slots], before, rtol=0, atol=1e-6)
    assert before.std() > 0.1


def test_a_checkpoint_at_another_window_is_what_hugging_face_computes(randomize):
    """Window 8 weights at window 16. Prevents: set_window_size moving the normaliser along."""
    arch = dict(embed_dim=24, depths=[2, 2, 2], num_heads=[2, 4, 8], out_features=['stage1', 'stage2', 'stage3'])
    trained = randomize(Swinv2Backbone(Swinv2Config(image_size=256, window_size=8, **arch)))
    peer = Swinv2Backbone(Swinv2Config(image_size=256, window_size=16, pretrained_window_sizes=[8, 8, 8], **arch))
    for parameter in (p for name, p in trained.named_parameters() if 'logit_scale' in name):
        parameter.data.clamp_(max=3)
    peer.load_state_dict(trained.state_dict())
    ours = SwinTransformerV2(embed_dims=24, depths=(2, 2, 2), num_heads=(2, 4, 8), out_indices=(0, 1, 2), window_size=8)
    missing, _ = ours.load_state_dict(convert_state_dict(trained.state_dict()).weights, strict=False)
    assert {key.split('.')[0] for key in missing} == {'norm0', 'norm1', 'norm2'}
    ours.set_window_size(16)
    x = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        maps = ours.eval()(x)
        for i, (mine, theirs) in enumerate(zip(maps, peer.eval()(x).feature_maps, strict=True)):
            normed = getattr(ours, f'norm{i}')(theirs.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            torch.testing.assert_close(mine, normed, atol=1e-5, rtol=0)


@pytest.mark.parametrize('fit', ['fixed', 'balanced'])
@pytest.mark.parametrize('mask_padding', [True, False])
def test_rectangular_windows_set_later_equal_the_slow_loop(fit, mask_padding, randomize):
    """Rows and columns have windows of their own. Prevents: one taken for the other, in window or normaliser."""
    pretrained = [(3, 2), (2, 4)]
    model = randomize(SwinTransformerV2(window_size=pretrained, mask_padding=mask_padding, window_fit=fit, **SMALL))
    model = model.double().eval()
    model.set_window_size([(4, 3), (3, 5)])
    image = torch.rand(3, 37, 50, dtype=torch.float64)  # maps of 10 x 13 and 5 x 7
    windows = [(4, 3), (3, 5)] if fit == 'fixed' else [(4, 3), (3, 4)]
    assert [window for _, window in model.windows_on((37, 50))] == windows
    expected = reference.backbone(
        model.state_dict(), image, (2, 1), (1, 2), windows, pretrained, mask_padding=mask_padding
    )
    with torch.no_grad():
        for mine, theirs in zip(model(image[None]), expected, strict=True):
            torch.testing.assert_close(mine[0], theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize('kind', ['fresh', 'trained', 'averaged', 'compiled', 'copied'])
def test_there_and_back_is_bit_identical(kind, randomize):
    """Prevents: a bias, mask or graph of one window kept for another."""
    model = randomize(SwinTransformerV2(window_size=4, **SMALL))
    x = torch.rand(2, 3, 40, 52)
    if kind == 'trained':
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        model.eval()(x)
        model.train()
        sum(f.square().mean() for f in model(x)).backward()
        optimizer.step()
    run = model.eval()
    if kind == 'averaged':
        from mmengine.model import ExponentialMovingAverage

        average = ExponentialMovingAverage(model, momentum=0.5)
        randomize(model, seed=1)
        average.update_parameters(model)
        run = average.module.eval()
    elif kind == 'copied':
        run(x)
        run = copy.deepcopy(run)
    call = torch.compile(run, backend='eager') if kind == 'compiled' else run
    parameters = {key: value.clone() for key, value in run.state_dict().items()}
    with torch.no_grad():
        first = call(x)
        run.set_window_size([(7, 3), 5])
        other = call(x)
        fresh = SwinTransformerV2(window_size=[(7, 3), 5], pretrained_window_sizes=4, **SMALL).eval()
        fresh.load_state_dict(run.state_dict())
        expected = fresh(x)
        run.set_window_size(4)
        last = call(x)
    assert_identical(first, last)
    torch.testing.assert_close(other, expected, rtol=0, atol=1e-5 if kind == 'compiled' else 0)
    assert not torch.equal(first[0], other[0])
    assert all(torch.equal(run.state_dict()[key], value) for key, value in parameters.items())


def test_set_window_size_refuses_what_the_constructor_refuses():
    """And leaves the model as it was. Prevents: half of the stages changed."""
    model = SwinTransformerV2(window_size=4, **SMALL)
    for wrong in (0, (4, 4, 4), -1, 2.5, 'large', [(4, 4, 4), 4]):
        with pytest.raises(ValueError, match='window_size'):
            model.set_window_size(wrong)
    assert model.window_size == ((4, 4), (4, 4))
    assert {block.window_size for stage in model.stages for block in stage.blocks} == {(4, 4)}
    with pytest.raises(ValueError, match='window_fit'):
        SwinTransformerV2(window_fit='best', **SMALL)


def test_balanced_never_computes_more():
    """By brute force over one axis: the same number of windows, each as small as can be, so the least padding.

    Prevents: a fit that saves on one size and costs on another.
    """
    for window in range(2, 49):
        for size in range(1, 401):
            count = -(-size // window)
            best = min(w for w in range(1, window + 1) if w * count >= size)
            assert fit_window((size, size), (window, window), True) == (best, best)
            fixed = count * min(window, size)
            assert -(-size // best) * best <= fixed
            assert effective_window((size, size), (best, best)) == (best, best)


def test_balanced_saves_at_the_size_of_detection():
    """At 800 x 1333 with window 16. Prevents: a fit that is never used."""
    fixed, balanced = (SwinTransformerV2(window_size=16, window_fit=fit) for fit in ('fixed', 'balanced'))
    for stage in (2, 3):
        padded, less = (model.padding_cost((800, 1333))[stage] - 1 for model in (fixed, balanced))
        assert less <= 0.8 * padded
    assert [window for _, window in balanced.windows_on((800, 1333))] == [(16, 16), (15, 16), (13, 14), (13, 14)]


@pytest.mark.parametrize('fit', ['fixed', 'balanced'])
def test_padding_cost_counts_what_is_computed(fit, monkeypatch):
    """Prevents: a report of other windows than the model uses."""
    monkeypatch.setattr(cpp, 'library', lambda: None)  # which computes no projections of padding
    model = SwinTransformerV2(window_size=[(5, 7), 4], window_fit=fit, **SMALL).eval()
    computed = [[0] * len(stage.blocks) for stage in model.stages]

    def count(stage, block):
        def hook(module, args):
            computed[stage][block] += args[0].shape[:-1].numel()

        return hook

    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            block.attn.proj.register_forward_pre_hook(count(i, j))
    with torch.no_grad():
        model(torch.rand(1, 3, 70, 111))
    tokens = [18 * 28, 9 * 14]
    for cost, blocks, total in zip(model.padding_cost((70, 111)), computed, tokens, strict=True):
        assert blocks == [cost * total] * len(blocks)
