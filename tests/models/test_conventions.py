"""What neighbours ask a backbone for: metadata, layers, weight decay, arguments by other names, weights by name."""

import inspect

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_layers import assert_identical

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.files import write_file
from swinv2_mm.errors import UserError
from swinv2_mm.models.arguments import _REPLACED

TINY = dict(embed_dims=16, depths=(1, 2, 1), num_heads=(1, 2, 4), out_indices=(0, 1, 2), window_size=4)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))


@pytest.mark.parametrize('out_indices', [(0, 1, 2), (1,), (-2, -1), (0, -1), [-3]])
@pytest.mark.parametrize('patch_size', [4, 2])
def test_metadata_are_those_of_the_maps(out_indices, patch_size):
    """Prevents: a neck that is wired by numbers which the maps do not have."""
    model = SwinTransformerV2(**TINY | dict(out_indices=out_indices, patch_size=patch_size))
    maps = model(torch.rand(1, 3, 64, 64))
    assert model.out_indices == tuple(i % 3 for i in out_indices)
    assert model.out_channels == tuple(m.shape[1] for m in maps)
    assert [info['num_chs'] for info in model.feature_info] == list(model.out_channels)
    assert [info['reduction'] for info in model.feature_info] == [64 // m.shape[2] for m in maps]
    modules = dict(model.named_modules())
    assert all(info['module'] in modules for info in model.feature_info)


@pytest.mark.parametrize('out_indices', [(-4,), (0, -3), (-1, 0), (3,), (True,)])
def test_stages_that_there_are_not(out_indices):
    """Prevents: a stage that is emitted twice, or in another order than the neck expects."""
    with pytest.raises(ValueError, match=r'out_indices=.*\[0, 1, 2\], or counted from the last, \[-3, -2, -1\]'):
        SwinTransformerV2(**TINY | dict(out_indices=out_indices))


def test_no_weight_decay_names_parameters():
    """Prevents: names that an optimizer does not find, so that the position bias decays."""
    model = SwinTransformerV2(**TINY)
    parameters = dict(model.named_parameters())
    names = model.no_weight_decay()
    assert len(names) == 4 * sum(TINY['depths']) and names <= set(parameters)
    assert {name for name in parameters if 'cpb' in name or 'scale' in name} == names


@pytest.mark.parametrize(
    ('name', 'layer'),
    [
        ('patch_embed.proj.weight', 0),
        ('stages.0.blocks.0.attn.qkv.weight', 1),
        ('stages.1.downsample.norm.bias', 1),
        ('stages.1.blocks.0.norm1.weight', 2),
        ('stages.1.blocks.1.mlp.fc1.weight', 3),
        ('stages.2.downsample.norm.bias', 3),
        ('stages.2.blocks.0.attn.logit_scale', 4),
        ('norm0.weight', 5),
    ],
)
def test_layers_in_mmpretrains_words(name, layer):
    """From the patch embedding, 0, to the heads, the last. Prevents: rates that decay from the wrong end."""
    model = SwinTransformerV2(**TINY)
    assert name in dict(model.named_parameters())
    assert model.get_layer_depth(name) == model.get_layer_depth(f'backbone.{name}', 'backbone.') == (layer, 6)
    assert model.get_layer_depth('head.fc.weight', 'backbone.') == (5, 6)


def test_arguments_of_other_code_bases_are_told_at_once():
    """All of Swin V1's in one message, each with what replaces it. Prevents: one error after another, and V1 settings
    that are taken for V2's.
    """
    v1 = dict(
        pretrain_img_size=224,
        patch_norm=True,
        qk_scale=None,
        use_abs_pos_embed=False,
        convert_weights=True,
        pretrained=None,
        windows_size=8,
    )
    with pytest.raises(TypeError) as error:
        SwinTransformerV2(**v1)
    text = str(error.value)
    assert all(repr(name) in text for name in v1)
    assert "'pretrained' (write init_cfg=dict(type='swinv2_mm.Pretrained'" in text
    assert "'pretrain_img_size' (leave it out: images of any size" in text
    assert "'windows_size' (Did you mean window_size?)" in text
    assert not set(_REPLACED) & set(inspect.signature(SwinTransformerV2).parameters)


def test_arguments_of_the_peers_are_known():
    """What MMDetection's Swin V1 takes is taken or told. Prevents: a silent gap after an update of this list."""
    SwinTransformer = pytest.importorskip('mmdet.models').SwinTransformer

    ours = set(inspect.signature(SwinTransformerV2).parameters)
    assert set(inspect.signature(SwinTransformer).parameters) - ours <= set(_REPLACED)


@pytest.fixture
def model(randomize):
    return randomize(SwinTransformerV2(**TINY | dict(window_size=[8, 8, 4], pretrained_window_sizes=[6, 6, 3]))).eval()


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_from_pretrained_reads_size_and_windows_off_the_file(suffix, model, tmp_path):
    """Without a config. Prevents: a normaliser, a window or a size that the caller has to know."""
    path = tmp_path / f'ours.{suffix}'
    write_file(model.state_dict(), path, dict(window_size=[8, 8, 4]))
    built = SwinTransformerV2.from_pretrained(path)
    assert not built.training and built.window_size == ((8, 8), (8, 8), (4, 4))
    assert built.pretrained_window_sizes == ((6, 6), (6, 6), (3, 3))
    image = torch.rand(1, 3, 70, 52)
    with torch.no_grad():
        assert_identical(built(image), model(image))
        other = SwinTransformerV2.from_pretrained(str(path), window_size=5, out_indices=(1, -1))
        model.set_window_size(5)
        assert_identical(other(image), model(image)[1:])


def test_from_pretrained_refuses_what_does_not_fit(model, tmp_path):
    """Prevents: a partly random backbone, or a guessed normaliser."""
    save_file(export_state_dict(model.state_dict(), 'timm')[0], tmp_path / 'timm.safetensors')
    with pytest.raises(UserError, match='does not tell its pretrained windows'):
        SwinTransformerV2.from_pretrained(tmp_path / 'timm.safetensors')
    assert SwinTransformerV2.from_pretrained(tmp_path / 'timm.safetensors', pretrained_window_sizes=[6, 6, 3])
    with pytest.raises(UserError, match='does not fit the backbone'):
        SwinTransformerV2.from_pretrained(tmp_path / 'timm.safetensors', pretrained_window_sizes=6, depths=(1, 1, 1))
    with pytest.raises(UserError, match='is neither a file'):
        SwinTransformerV2.from_pretrained('swinv2_tinny')
