"""Converted weights of every layout compute the same maps as their own code base."""

import re
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from support.peers import coords_table, features_from_keys, import_peer, narrow, position_index, random_state, recorded
from support.peers.real import real_features
from support.versions import needs_float16
from transformers import Swinv2Backbone, Swinv2Config, Swinv2ForImageClassification

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import convert_state_dict, export_state_dict
from swinv2_mm.checkpoints.layouts import LAYOUTS
from swinv2_mm.errors import UserError

TINY = dict(embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24])
BASE = dict(embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32])
WINDOWS = {8: (8, 8, 8, 8), 16: (16, 16, 16, 8)}  # of models for 256 pixels
LARGEST = {torch.float32: 1e-5, torch.float64: 1e-6}


def moderate(state):
    """Bring the temperatures down: peers mask with -100, which at a scale of 100 still lets attention through."""
    return {
        key: 1 + value.clamp(-1.5, 1.5).abs() if key.endswith('logit_scale') else value for key, value in state.items()
    }


def as_base(shapes, channels=96):
    """The recorded Swin-T, or a narrower one, widened and deepened to Swin-B."""
    grown = {}
    for key, shape in shapes.items():
        heads = key.endswith(('logit_scale', 'cpb_mlp.2.weight'))
        shape = [n * 4 // 3 if n % channels == 0 or (heads and axis == 0) else n for axis, n in enumerate(shape)]
        place = re.fullmatch(r'(.*(?:layers\.2\.blocks|stages\.2\.blocks|features\.5)\.)5(\..*)', key)
        for j in range(5, 18) if place else [None]:
            grown[f'{place[1]}{j}{place[2]}' if place else key] = shape
    return grown


def with_window(shapes, windows):
    """The recorded model with tables and indices of other windows."""
    out = {}
    for key, shape in shapes.items():
        stage = re.search(r'(?:layers|stages)\.(\d)|features\.(\d)', key)
        w = windows[int(stage[1] or (int(stage[2]) - 1) // 2)] if stage else None
        if key.endswith('relative_coords_table'):
            shape = [1, 2 * w - 1, 2 * w - 1, 2]
        elif key.endswith('relative_position_index'):
            shape = list(position_index((w, w)).shape) if len(shape) == 2 else [w**4]
        out[key] = shape
    return out


def our_maps(conversion, image, windows, pretrained, mask_padding=True):
    model = (
        SwinTransformerV2(
            **conversion.geometry.arguments(),
            window_size=list(windows),
            mask_padding=mask_padding,
            pretrained_window_sizes=list(pretrained),
        )
        .to(image.dtype)
        .eval()
    )
    missing, unexpected = model.load_state_dict(conversion.weights, strict=False)
    assert unexpected == []
    assert {key.split('.')[0] for key in missing} == set(conversion.new)
    with torch.no_grad():
        return model(image), [getattr(model, f'norm{i}') for i in range(4)]


def largest_difference(maps, norms, theirs):
    """Theirs are not normalised: dense prediction adds the output norms."""
    with torch.no_grad():
        normed = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(norms, theirs, strict=True)]
    assert all(bool(x.isfinite().all()) for x in maps)
    return max(float((a - b).abs().max()) for a, b in zip(maps, normed, strict=True))


# Each window, size and type once; the other combinations are slow.
QUICK = [(16, 'tiny', torch.float32), (8, 'tiny', torch.float64), (16, 'base', torch.float64)]
WINDOWS_SIZES_AND_TYPES = pytest.mark.parametrize(
    ('window', 'size', 'dtype'),
    [
        pytest.param(*case, id='-'.join(map(str, case)), marks=[] if case in QUICK else pytest.mark.slow)
        for case in product((8, 16), ('tiny', 'base'), (torch.float32, torch.float64))
    ],
)


@WINDOWS_SIZES_AND_TYPES
@pytest.mark.parametrize('name', ['timm', 'torchvision', 'mmpretrain'])
def test_maps_equal_those_of_the_peer(name, window, size, dtype):
    """All four maps agree, with no tensor at its initial value; in float64 with narrower channels, to save time.

    Prevents: a tensor in the wrong place, a permutation forgotten, another normaliser.
    """
    windows = (window,) * 4 if name == 'torchvision' else WINDOWS[window]
    shapes = with_window(recorded(name)['tensors'], windows)
    by = 8 if dtype == torch.float64 else 1
    shapes = narrow(shapes, by)
    shapes = as_base(shapes, 96 // by) if size == 'base' else shapes
    state = moderate(random_state(shapes, 1, dtype))
    image = torch.randn(1, 3, 256, 256, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        forward = real_features if import_peer(name) else features_from_keys
        theirs = forward(name, state, image, windows)[0]
    conversion = convert_state_dict(state)
    assert conversion.layout == name
    # torchvision completes a map that is smaller than its window with zero tokens, which take part.
    maps, norms = our_maps(conversion, image, windows, windows, mask_padding=name != 'torchvision')
    assert largest_difference(maps, norms, theirs) <= LARGEST[dtype]


@pytest.mark.parametrize('pretrained', [(8, 8, 8, 8), (12, 12, 12, 6)], ids=['w8', 'w12to16'])
@pytest.mark.parametrize('name', ['timm', 'mmpretrain'])
def test_maps_are_equal_with_a_window_larger_than_the_pretrained_one(name, pretrained):
    """Models fine-tuned at a larger window keep their first normaliser. Prevents: a bias stretched to the window."""
    windows = WINDOWS[16]
    shapes = narrow(with_window(recorded(name)['tensors'], windows), 8)
    state = moderate(random_state(shapes, 1, torch.float64, pretrained))
    image = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    theirs = features_from_keys(name, state, image, windows, pretrained)[0]
    conversion = convert_state_dict(state)
    if name == 'mmpretrain':  # saves its tables
        assert conversion.pretrained_window_sizes == tuple((p, p) for p in pretrained)
        assert conversion.window_size == tuple((w, w) for w in windows)
    maps, norms = our_maps(conversion, image, windows, pretrained)
    assert largest_difference(maps, norms, theirs) <= 1e-6
    maps, norms = our_maps(conversion, image, windows, windows)
    assert largest_difference(maps, norms, theirs) > 1e-3


def huggingface(kind, size, window, pretrained=(0, 0, 0, 0), **config):
    model = kind(
        Swinv2Config(image_size=256, window_size=window, pretrained_window_sizes=list(pretrained), **size, **config)
    )
    state = {key: value.shape for key, value in model.state_dict().items()}
    random = moderate(random_state(state, 2))
    assert not any(key.endswith('relative_coords_table') for key in state)
    model.load_state_dict(random)
    return model.eval(), random


@WINDOWS_SIZES_AND_TYPES
def test_maps_equal_those_of_hugging_face(window, size, dtype):
    """The real Swinv2Backbone, which has no output norms. Prevents: q, k and v in another order."""
    size = dict(TINY if size == 'tiny' else BASE)
    size['embed_dim'] //= 8 if dtype == torch.float64 else 1
    model, state = huggingface(Swinv2Backbone, size, window, out_features=[f'stage{i}' for i in (1, 2, 3, 4)])
    state = {key: value.to(dtype) for key, value in state.items()}
    image = torch.randn(1, 3, 256, 256, dtype=dtype)
    model = model.to(dtype)
    if dtype == torch.float64:  # its tables were rounded to float32
        for module in model.modules():
            if hasattr(module, 'relative_coords_table'):
                own = module.window_size
                module.relative_coords_table = coords_table(own, own)
    with torch.no_grad():
        theirs = model(image).feature_maps
    conversion = convert_state_dict(state)
    assert (conversion.layout, len(conversion.new)) == ('huggingface', 4)
    maps, norms = our_maps(conversion, image, WINDOWS[window], WINDOWS[window])
    assert largest_difference(maps, norms, theirs) <= LARGEST[dtype]


def microsoft(size='tiny', window=8, dtype=torch.float64):
    """Microsoft's names are timm's, with the patch merging at the end of the stage before, and tables in the file."""
    by = 8 if dtype == torch.float64 else 1
    shapes = narrow(recorded('timm')['tensors'], by)
    timm = moderate(random_state(as_base(shapes, 96 // by) if size == 'base' else shapes, 3, dtype))
    out = {}
    for key, value in timm.items():
        if key.endswith('logit_scale'):
            side = WINDOWS[window][int(key.split('.')[1])]
            start = key.removesuffix('logit_scale')
            out[start + 'relative_coords_table'] = coords_table((side, side), (side, side)).to(dtype)
            out[start + 'relative_position_index'] = position_index((side, side))
        key = re.sub(r'layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', key)
        out[key.replace('head.fc', 'head')] = value
    return timm, out


WRAPPINGS = {
    'bare': lambda key: key,
    'parallel': lambda key: 'module.' + key,
    'simmim': lambda key: 'encoder.' + key,
    'old spelling': lambda key: key.replace('cpb_mlp', 'rpe_mlp'),
    'detector': lambda key: 'backbone.' + key,
}


@WINDOWS_SIZES_AND_TYPES
@pytest.mark.parametrize('wrapping', ['bare', 'simmim'])
def test_maps_equal_those_of_microsoft_and_simmim(wrapping, window, size, dtype):
    """Prevents: a patch merging in the wrong stage, another normaliser in the last stage."""
    timm, state = microsoft(size, window, dtype)
    image = torch.randn(1, 3, 256, 256, dtype=dtype)
    theirs = features_from_keys('timm', timm, image, WINDOWS[window])[0]
    state = {WRAPPINGS[wrapping](key): value for key, value in state.items()}
    if wrapping == 'simmim':
        state |= {'encoder.mask_token': torch.zeros(1, 1, 96), 'decoder.0.weight': torch.ones(4, 96, 1, 1)}
    conversion = convert_state_dict(state)
    assert conversion.layout == ('simmim' if wrapping == 'simmim' else 'microsoft')
    assert conversion.window_size == conversion.pretrained_window_sizes == tuple((w, w) for w in WINDOWS[window])
    maps, norms = our_maps(conversion, image, WINDOWS[window], WINDOWS[window])
    assert largest_difference(maps, norms, theirs) <= LARGEST[dtype]


@pytest.mark.parametrize('wrapping', WRAPPINGS)
def test_wrappings_give_the_same_weights(wrapping):
    """Prevents: a random position bias for files that say rpe_mlp, or a prefix that hides the model."""
    _, state = microsoft()
    bare = convert_state_dict(state)
    conversion = convert_state_dict({WRAPPINGS[wrapping](key): value for key, value in state.items()})
    assert conversion.weights.keys() == bare.weights.keys()
    assert all(torch.equal(conversion.weights[key], value) for key, value in bare.weights.items())
    assert conversion.window_size == bare.window_size


def test_our_own_detector_is_read_with_its_windows(randomize):
    """The backbone comes out of a whole model bit-identically. Prevents: weights of a head taken for the backbone's."""
    model = randomize(SwinTransformerV2(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1)))
    state = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    state |= {'neck.convs.0.weight': torch.ones(1), 'rpn_head.conv.weight': torch.ones(1)}
    conversion = convert_state_dict(state)
    assert (conversion.layout, conversion.prefix) == ('openmmlab', 'backbone.')
    weights = dict(model.named_parameters())
    assert conversion.weights.keys() == weights.keys()
    assert all(torch.equal(conversion.weights[key], value) for key, value in weights.items())
    assert conversion.pretrained_window_sizes == ((8, 8), (8, 8))
    assert set(conversion.dropped) == {'neck.convs.0.weight', 'rpn_head.conv.weight', 'backbone.pretrained_windows'}


@pytest.mark.parametrize(
    ('windows', 'words'),
    [
        (torch.ones(2, 2), 'whole numbers'),
        (torch.ones(2, dtype=torch.long), 'whole numbers'),
        (torch.zeros(2, 2, dtype=torch.long), 'whole numbers'),
        (torch.ones(3, 2, dtype=torch.long), '3 stages, not 2'),
    ],
)
def test_invalid_pretrained_windows_are_refused(windows, words):
    """Prevents: a damaged file that becomes a normaliser, which no shape and no later check would show."""
    model = SwinTransformerV2(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))
    with pytest.raises(UserError, match=f'pretrained_windows.*{words}'):
        convert_state_dict(model.state_dict() | dict(pretrained_windows=windows))


def learned(state):
    return {
        key: value
        for key, value in state.items()
        if 'relative_' not in key and 'head' not in key and 'classifier' not in key
    }


@pytest.mark.parametrize(
    'dtype', [torch.float32, pytest.param(torch.float16, marks=needs_float16), torch.bfloat16, torch.float64], ids=str
)
@pytest.mark.parametrize('layout', ['microsoft', 'timm', 'huggingface'])
def test_round_trip_is_bit_identical(layout, dtype):
    """There and back, every learned tensor is what it was. Prevents: rounding, and keys lost on the way."""
    if layout == 'huggingface':
        size = dict(TINY, embed_dim=24)
        state = {k.removeprefix('swinv2.'): v for k, v in huggingface(Swinv2ForImageClassification, size, 8)[1].items()}
    else:
        state = microsoft()[0 if layout == 'timm' else 1]
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    conversion = convert_state_dict(state)
    assert conversion.layout == layout
    back, lost = export_state_dict(conversion.weights, layout)
    assert lost == []
    state = learned(state)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) and back[key].dtype == value.dtype for key, value in state.items())


@pytest.mark.parametrize('layout', LAYOUTS)
def test_our_weights_survive_every_layout(layout, randomize):
    """Ours to any layout and back is bit-identical. Prevents: a row whose two directions do not match."""
    model = randomize(SwinTransformerV2('giant', embed_dims=16, depths=(1, 7), num_heads=(1, 2), out_indices=(0, 1)))
    state = dict(model.named_parameters())
    if layout in ('huggingface', 'torchvision'):
        with pytest.raises(UserError, match=r'no place for .*norm3.*another model'):
            export_state_dict(state, layout)
        state = {key: value for key, value in state.items() if '.norm3.' not in key}
    exported, lost = export_state_dict(state, layout)
    if layout == 'simmim':
        exported['mask_token'] = torch.zeros(1, 1, 16)
    back = convert_state_dict(exported, layout=layout).weights
    kept = {key: value for key, value in state.items() if key not in lost}
    assert back.keys() == kept.keys()
    assert all(torch.equal(back[key], value) for key, value in kept.items())
    assert {key.split('.')[0] for key in lost} <= {'norm0'}


def test_the_expected_shapes_are_those_of_the_model():
    """Prevents: a strictness that checks against another model than ours."""
    for arguments in (dict(arch='tiny'), dict(arch='huge'), dict(qkv_bias=False), dict(mlp_ratio=3.0, in_channels=4)):
        with torch.device('meta'):
            model = SwinTransformerV2(**arguments)
        wanted = {k: tuple(v.shape) for k, v in model.named_parameters() if not re.match(r'norm\d', k)}
        meta = {k: torch.ones(1).expand(v) for k, v in wanted.items()}
        from swinv2_mm.checkpoints.geometry import read_geometry

        geometry = read_geometry(meta)
        assert geometry.shapes() == wanted
        assert geometry.arch == arguments.get('arch', 'tiny')


def test_moderate_only_touches_temperatures():
    """Prevents: a comparison of models whose tensors were quietly made equal."""
    state = {'attn.logit_scale': torch.tensor([[[4.0]]]), 'norm.weight': torch.tensor([4.0])}
    changed = moderate(state)
    assert changed['norm.weight'] is state['norm.weight']
    assert 1 <= float(changed['attn.logit_scale']) <= 2.5
    assert F.softplus(changed['attn.logit_scale']).isfinite().all()
