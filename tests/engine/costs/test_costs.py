"""Counts of parameters and multiply-adds: the published ones, and those of models that really run."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.catalog import RELEASES
from swinv2_mm.engine.costs import build_on_meta, complexity, count_parameters
from swinv2_mm.errors import UserError

CONFIGS = Path(__file__).parents[3] / 'configs'


def classifier(arch, window, side):
    """Parameters and multiply-adds of the backbone with one norm and a classifier of 1000 classes; its block lists."""
    with torch.device('meta'):
        model = SwinTransformerV2(arch, window_size=window, out_indices=[3])
    C = model.num_features[3]
    return count_parameters(model) + 1000 * (C + 1), sum(model.multiply_adds((side, side))) + 1000 * C, model


def bias_multiply_adds(stage, size):
    """Of the MLP of the position bias, in all blocks: from 2 coordinates of each offset to 512, from there to heads."""
    (rows, columns), heads = stage.blocks[0].window_on(size), stage.blocks[0].attn.num_heads
    return len(stage.blocks) * (2 * rows - 1) * (2 * columns - 1) * (2 * 512 + 512 * heads)


def test_counts_equal_those_published_by_microsoft():
    """All digits of its MODELHUB.md. Prevents: a count of something else than what papers call FLOPs."""
    published = [release for release in RELEASES.values() if release.gflops is not None]
    assert len(published) == 10
    for release in published:
        parameters, multiply_adds, _ = classifier(release.arch, release.window_size, release.image_size)
        assert round(parameters / 1e6) == release.parameters
        assert round(multiply_adds / 1e9, 1) == release.gflops


@pytest.mark.parametrize(
    ('arch', 'parameters', 'gflops'),
    [('tiny', 28351570, 5.94), ('small', 49737442, 11.546), ('base', 87930848, 20.325)],
)
def test_counts_equal_those_published_by_torchvision(arch, parameters, gflops):
    """To the last parameter, and three digits behind the point: torchvision (``num_params``, ``_ops``) learns a bias of
    keys, and counts the MLP of the position bias. Prevents: a layer, or a term of the count, that is missing.
    """
    own, multiply_adds, model = classifier(arch, 8, 256)
    assert (
        own + sum(len(stage.blocks) * C for stage, C in zip(model.stages, model.num_features, strict=True))
        == parameters
    )
    bias = sum(bias_multiply_adds(stage, (64 // 2**i, 64 // 2**i)) for i, stage in enumerate(model.stages))
    assert round((multiply_adds + bias) / 1e9, 3) == gflops


@pytest.mark.parametrize('mask_padding', [True, False])
@pytest.mark.parametrize('window_fit', ['fixed', 'balanced'])
def test_multiply_adds_are_those_that_run(window_fit, mask_padding):
    """Stage by stage on an image that pads everywhere, by PyTorch's own counter of what is really computed.

    Prevents: a count for another window than the one in use, or without padding.
    """
    model = SwinTransformerV2(
        embed_dims=16,
        depths=(2, 1),
        num_heads=(2, 4),
        out_indices=(1,),
        window_size=[(5, 3), 4],
        in_channels=4,
        patch_size=3,
        mlp_ratio=3.0,
        window_fit=window_fit,
        mask_padding=mask_padding,
    )
    x, counted = torch.rand(1, 4, 67, 92), []
    for stage in model.stages:
        with FlopCounterMode(display=False) as counter:
            x = stage(x if counted else model.patch_embed(x))
        counted.append(counter.get_total_flops() // 2 - bias_multiply_adds(stage, tuple(x.shape[1:3])))
    assert tuple(x.shape[1:3]) == (12, 16)
    assert model.multiply_adds((67, 92)) == counted


def whole(name, **backbone):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.update(backbone)
    return cfg


@pytest.mark.parametrize(
    ('name', 'arch', 'size', 'parameters', 'gflops'),
    [
        ('maskrcnn_swinv2_t', 'tiny', (800, 1280), 48, 267),
        ('maskrcnn_swinv2_t', 'small', (800, 1280), 69, 359),
        ('cascade_maskrcnn_swinv2_t_w16_3x', 'tiny', (800, 1280), 86, 745),
        ('cascade_maskrcnn_swinv2_t_w16_3x', 'small', (800, 1280), 107, 838),
        ('upernet_swinv2_t', 'tiny', (512, 2048), 60, 945),
        ('upernet_swinv2_t', 'small', (512, 2048), 81, 1038),
    ],
)
def test_counts_with_heads_equal_published_ones(name, arch, size, parameters, gflops):
    """Swin V1's README: with window 7 its backbone has the same products; to 0.2 %, since it counts norms.

    Prevents: heads that are counted twice, with other numbers of proposals, or with those that only train.
    """
    cfg = whole(name, arch=arch, window_size=7)
    cost = complexity(build_on_meta(cfg.model, cfg.default_scope), size)
    assert round(cost.parameters / 1e6) == parameters
    assert cost.total / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_a_two_stage_detector_equals_a_count_by_hand():
    """Narrow heads on a small image that is padded to a multiple of 32, 70 proposals, 30 boxes with masks.

    Prevents: heads that are multiplied by a wrong number of regions, or an image as it is before padding.
    """
    cfg = whole('maskrcnn_swinv2_t_shapes', depths=(1, 1, 1, 1))
    cfg.model.test_cfg.rpn.max_per_img, cfg.model.test_cfg.rcnn.max_per_img = 70, 30
    cost = complexity(build_on_meta(cfg.model, cfg.default_scope), (100, 65))
    assert cost.size == (128, 96)
    tokens = [(128 // s) * (96 // s) for s in (4, 8, 16, 32)]
    neck = sum(n * (C * 64 + 64 * 64 * 9) for n, C in zip(tokens, (96, 192, 384, 768), strict=True))
    tokens.append(2 * 2)  # the fifth level is a maximum of the fourth
    rpn = sum(tokens) * 64 * (64 * 9 + 3 + 3 * 4)  # three anchors: scores and boxes
    box = 70 * (64 * 49 * 256 + 256 * 256 + 256 * (4 + 3 * 4))  # three classes and the background
    mask = 30 * (4 * 14 * 14 * 64 * 64 * 9 + 14 * 14 * 64 * 64 * 4 + 28 * 28 * 64 * 3)
    assert cost.heads == neck + rpn + box + mask


def shrink_dino(model):
    model.num_queries = 10
    model.encoder.num_layers = model.decoder.num_layers = 1
    model.neck.in_channels = [32, 64, 128]


def shrink_mask2former(model):
    model.panoptic_head.update(num_queries=7, in_channels=[16, 32, 64, 128])
    model.panoptic_head.pixel_decoder.encoder.num_layers = 1


def shrink_mask2former_ade20k(model):
    model.decode_head.update(num_queries=7, in_channels=[16, 32, 64, 128])
    model.decode_head.pixel_decoder.encoder.num_layers = 1
    model.data_preprocessor.size = (64, 96)


def shrink_upernet(model):
    model.decode_head.update(in_channels=[16, 32, 64, 128], norm_cfg=dict(type='BN'))
    model.auxiliary_head.in_channels = 64


def shrink_atss(model):
    model.neck.in_channels = [32, 64, 128]


@pytest.mark.parametrize(
    ('name', 'shrink'),
    [
        ('dino_swinv2_t', shrink_dino),
        ('mask2former_swinv2_t', shrink_mask2former),
        ('atss_swinv2_t', shrink_atss),
        ('mask2former_swinv2_t_ade20k', shrink_mask2former_ade20k),
        ('upernet_swinv2_t', shrink_upernet),
    ],
)
def test_models_are_counted_as_they_run(name, shrink):
    """Without memory the same is counted as in a real prediction.

    Prevents: shapes that a head reads off tensors being lost or wrong where tensors have no values.
    """
    cfg = whole(name, embed_dims=16, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window_size=4, init_cfg=None)
    shrink(cfg.model)
    size = (64, 96)
    cost = complexity(build_on_meta(deepcopy(cfg.model), cfg.default_scope), size)  # DINO writes into its config
    model = build_on_meta(cfg.model, cfg.default_scope).to_empty(device='cpu')
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(0.01)
    image = torch.rand(1, 3, *size)
    sample = BaseDataElement(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size))
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            if hasattr(model, 'encode_decode'):
                model.encode_decode(image, [sample.metainfo])
            else:
                model(image, [sample], mode='tensor')
    # Of the position bias, which a prediction without a counter computes once.
    bias = sum(
        2 * offsets(window) * block.attn.cpb_mlp[0].out_features * (2 + block.attn.num_heads)
        for stage, (_, window) in zip(model.backbone.stages, model.backbone.windows_on(size), strict=True)
        for block in stage.blocks
    )
    assert 2 * cost.total + bias == counter.get_total_flops()


def offsets(window):
    return (2 * window[0] - 1) * (2 * window[1] - 1)


class Curious(nn.Module):
    """A model whose head wants to know a number."""

    def __init__(self):
        super().__init__()
        self.data_preprocessor = nn.Identity()
        self.backbone = SwinTransformerV2(embed_dims=8, depths=(1,), num_heads=(1,), out_indices=(0,))

    def forward(self, image, samples, mode):
        return self.backbone(image)[0].sum().item()


def test_heads_that_cannot_be_counted_are_said(capsys):
    """Prevents: a count without heads that is taken for the model's, or no count of the backbone because of them."""
    with torch.device('meta'):
        model = Curious()
    cost = complexity(model, (40, 50))
    assert cost.heads is cost.total is None
    assert cost.size == (40, 50) and cost.backbone == sum(model.backbone.multiply_adds((40, 50))) > 0
    assert 'heads of Curious cannot be counted' in capsys.readouterr().err


def test_another_backbone_is_refused():
    """Prevents: an AttributeError from deep inside."""
    with pytest.raises(UserError, match=r'is ResNet, not swinv2_mm\.SwinTransformerV2'):
        build_on_meta(dict(type='FasterRCNN', backbone=dict(type='ResNet')), 'mmdet')
