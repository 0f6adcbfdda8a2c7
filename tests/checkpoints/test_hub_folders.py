"""Folders of Hugging Face: sharded weights, its cache, and models that have a SwinV2 as a part."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Swinv2Config, Swinv2Model, UperNetConfig, UperNetForSemanticSegmentation

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.load import fetch, open_checkpoint
from swinv2_mm.checkpoints.sources import locate
from swinv2_mm.checkpoints.windows import plain, windows_of_hugging_face
from swinv2_mm.errors import UserError
from swinv2_mm.sizes import VARIANTS, Variant

SIZE = dict(embed_dim=16, depths=[1, 2], num_heads=[1, 2])
INDEX = 'model.safetensors.index.json'


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def whole(randomize):
    """The state_dict of a model that lies in the folders ``whole`` and, in shards, ``safe`` and ``bin``."""
    config = Swinv2Config(image_size=64, window_size=12, pretrained_window_sizes=[6, 0], **SIZE)
    model = randomize(Swinv2Model(config, add_pooling_layer=False))
    model.save_pretrained('whole')
    model.save_pretrained('safe', max_shard_size='60KB')
    model.save_pretrained('bin', max_shard_size='60KB', safe_serialization=False)
    return load_file('whole/model.safetensors')


def refusal(name):
    with pytest.raises(UserError) as caught:
        open_checkpoint(name)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def shards(folder):
    found = sorted(path for path in Path(folder).iterdir() if '-of-' in path.name)
    assert len(found) > 2
    return found


@pytest.mark.parametrize(
    'name', ['safe', f'safe/{INDEX}', 'bin', 'bin/pytorch_model.bin.index.json'], ids=lambda name: name.split('.')[0]
)
def test_shards_are_one_model(name, whole):
    """Folder and index stand for all shards. Bug: only the first is read, or the config beside them is passed over."""
    loaded, expected = open_checkpoint(name), open_checkpoint('whole')
    assert loaded.original.keys() == whole.keys()
    assert all(torch.equal(tensor, whole[key]) for key, tensor in loaded.original.items())
    assert plain(loaded.pretrained_window_sizes) == plain(expected.pretrained_window_sizes) == [6, 8]
    assert loaded.told_by == 'config.json' and loaded.digest != expected.digest
    assert 'give its folder' in refusal(str(shards(name.split('/')[0])[1]))


def test_a_changed_shard_is_converted_anew(whole):
    """The converted copy is of these shards. Bug: only the index is looked at, which stays as it was."""
    before, meta = fetch('safe')
    path = next(path for path in shards('safe') if 'layernorm.weight' in load_file(path))
    save_file({key: tensor * 2 for key, tensor in load_file(path).items()}, path)
    after, changed = fetch('safe')
    assert torch.equal(after['norm1.weight'], before['norm1.weight'] * 2)
    assert meta['source_sha256'] != changed['source_sha256']


def edited(folder, edit):
    path = next(Path(folder).glob('*.index.json'))
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edit(content) or content))


def point_to(name):
    return lambda content: content['weight_map'].update(dict.fromkeys(list(content['weight_map'])[:1], name))


@pytest.mark.parametrize('folder', ['safe', 'bin'])
@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda files: files[1].unlink(), 'of its shards {1} is missing'),
        (lambda files: [file.unlink() for file in files[:2]], 'of its shards {0}, {1} are missing'),
        (lambda files: files[1].write_bytes(files[1].read_bytes()[:-50]), '{1} is'),
        (lambda files: files[1].write_bytes(files[0].read_bytes()), '{1} is not the shard that'),
        (lambda files: edited(files[0].parent, point_to('../whole/model.safetensors')), 'not beside it (../whole/'),
        (lambda files: edited(files[0].parent, point_to(str(files[0].absolute()))), 'not beside it (/'),
        (lambda files: edited(files[0].parent, point_to('..')), 'not beside it (..)'),
        (lambda files: edited(files[0].parent, point_to('a\\b')), 'not beside it (a\\b)'),
        (lambda files: edited(files[0].parent, point_to(files[1].name)), 'is not the shard that'),
        (lambda files: edited(files[0].parent, point_to(3)), 'no index of shards'),
        (lambda files: edited(files[0].parent, lambda content: {'weight_map': {}}), 'no index of shards'),
        (lambda files: edited(files[0].parent, lambda content: [content]), 'no index of shards'),
        (lambda files: next(files[0].parent.glob('*.index.json')).write_text('{'), 'cannot be read'),
        (lambda files: next(files[0].parent.glob('*.index.json')).write_bytes(b'\xff'), 'cannot be read'),
    ],
)
def test_shards_that_are_no_whole_are_refused(damage, words, folder, whole):
    """The wrong file is named, and nothing outside of the folder is read. Bug: the rest of the model stays random, or a
    download reads a file of its choice."""
    files = shards(folder)
    damage(files)
    message = refusal(folder)
    assert words.format(*(file.name for file in files)) in message and folder in message
    with pytest.raises(UserError):
        fetch(folder)


@pytest.fixture
def cache(whole):
    """A model in the layout of Hugging Face's cache, in two versions: the second has the refs/main."""
    root = Path('hub/models--microsoft--swinv2-tiny-patch4-window8-256')
    (root / 'blobs').mkdir(parents=True)
    for version, folder in (('aaa', 'whole'), ('bbb', 'safe')):
        (root / 'snapshots' / version).mkdir(parents=True)
        for file in Path(folder).iterdir():
            os.rename(file, root / 'blobs' / f'{version}{file.name}')
            (root / 'snapshots' / version / file.name).symlink_to(f'../../blobs/{version}{file.name}')
    (root / 'refs').mkdir()
    (root / 'refs' / 'main').write_text('bbb')
    return root


def test_the_cache_of_downloads_is_a_folder_as_well(cache, whole):
    """Its folder stands for what `main` is, a snapshot for itself; links are followed. Bug: a user who looks for the
    download by hand is told that there are no weights in it."""
    for name, found in (
        (cache, f'bbb/{INDEX}'),
        (cache / 'snapshots', f'bbb/{INDEX}'),
        (cache / 'snapshots' / 'aaa', 'aaa/model.safetensors'),
        (cache / 'snapshots' / 'bbb' / INDEX, f'bbb/{INDEX}'),
    ):
        source = locate(str(name))
        assert source.path == cache / 'snapshots' / found
        assert source.config['window_size'] == 12 and source.release.arch == 'tiny'
        assert open_checkpoint(str(name)).original.keys() == whole.keys()
    (cache / 'refs' / 'main').write_text('ccc')
    assert 'holds 2 versions of a model; give the folder of one' in refusal(str(cache))
    assert 'models--microsoft--swinv2-tiny' in refusal('hub')
    next((cache / 'blobs').glob('aaa*.safetensors')).unlink()
    assert 'model.safetensors is a link to a file that is not there' in refusal(str(cache / 'snapshots' / 'aaa'))


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('model.fp16.safetensors', 'give folder/model.fp16.safetensors'),
        ('tf_model.h5', 'from_tf=True'),
        ('flax_model.msgpack', 'transformers can save them'),
        ('.metadata', 'dcp_to_torch folder FILE'),
        ('notes.txt', 'name the file'),
    ],
)
def test_other_folders_get_a_hint(name, words, tmp_path):
    """Bug: the user is told what is missing, and not what to do with what is there."""
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / name).touch()
    assert words in refusal('folder')


@pytest.fixture
def upernet(randomize):
    """A segmentor of Hugging Face with a SwinV2 as its backbone, as it saves it: defaults are left out there."""
    backbone = Swinv2Config(
        image_size=64, window_size=12, pretrained_window_sizes=[6, 0], out_features=['stage1', 'stage2'], **SIZE
    )
    config = UperNetConfig(backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False)
    return randomize(UperNetForSemanticSegmentation(config)).eval()


def test_the_backbone_of_a_segmentor_computes_the_same_maps(upernet):
    """Windows, prefix and weights come out of the whole model. Bug: windows are looked for at the top of the config
    alone, so the model is refused, or its position bias is normalised by another window."""
    upernet.save_pretrained('upernet')
    upernet.save_pretrained('sharded', max_shard_size='100KB')
    image = torch.randn(1, 3, 64, 64)
    for name in ('upernet', 'sharded'):
        ours = SwinTransformerV2.from_pretrained(name, mask_padding=False)
        assert ours.window_size == ((12, 12), (8, 8)) and ours.pretrained_window_sizes == ((6, 6), (8, 8))
        with torch.no_grad():
            theirs = upernet.backbone(image).feature_maps
            normed = [norm(x.permute(0, 2, 3, 1)) for norm, x in zip((ours.norm0, ours.norm1), theirs, strict=True)]
            for mine, expected in zip(ours(image), normed, strict=True):
                torch.testing.assert_close(mine, expected.permute(0, 3, 1, 2), rtol=0, atol=1e-5)
    loaded = open_checkpoint('upernet')
    assert loaded.conversion.prefix == 'backbone.' and loaded.told_by == 'config.json'
    norms = {
        f'hidden_states_norms.stage{i}.{leaf}': torch.rand(8 * 2**i) for i in (1, 2) for leaf in ('weight', 'bias')
    }
    torch.save({**upernet.backbone.state_dict(), **norms}, 'with_norms.pth')
    assert open_checkpoint('with_norms.pth').conversion.new == []


PART = dict(model_type='swinv2', image_size=64, window_size=12, pretrained_window_sizes=[6, 0])
NAMED = 'microsoft/swinv2-tiny-patch4-window8-256'


@pytest.mark.parametrize(
    ('config', 'windows', 'pretrained'),
    [
        (dict(model_type='detr', backbone_config=PART), [12, 8], [6, 8]),
        (dict(model_type='vision-encoder-decoder', encoder=PART, decoder=dict(model_type='bert')), [12, 8], [6, 8]),
        (dict(model_type='a', model=dict(vision_config=dict(backbone_config=PART))), [12, 8], [6, 8]),
        (dict(a=PART, b=dict(PART)), [12, 8], [6, 8]),
        (dict(a=PART, b=dict(PART, window_size=16)), None, None),
        (dict(backbone_config=dict(model_type='swin', window_size=7)), None, None),
        (dict(backbone_config=dict(PART, image_size=[64, 32])), [12, 8], [6, 8]),
        (dict(backbone_config=dict(PART, pretrained_window_sizes=[6, 3, 0, 0])), [12, 8], [6, 3]),
        (dict(backbone_config=dict(model_type='swinv2')), [7, 7], [7, 7]),  # transformers' defaults
        (dict(backbone_config=dict(PART, window_size='12')), None, None),
        (dict(backbone_config=None), None, None),
    ],
)
def test_windows_of_a_part_are_found(config, windows, pretrained):
    """Bug: only the config of a classifier is understood, or one of two backbones is taken for the other."""
    found = windows_of_hugging_face(config, 4, 2)
    assert tuple(map(plain, found)) == (windows, pretrained)
    if pretrained == [7, 7]:
        default = Swinv2Config()
        assert (default.image_size, default.window_size, default.pretrained_window_sizes) == (224, 7, [0] * 4)


@pytest.mark.parametrize(
    ('config', 'known'),
    [
        (dict(backbone=NAMED, backbone_kwargs=dict(out_indices=[1, 2])), True),
        (dict(backbone='swinv2_tiny_window8_256.ms_in1k'), True),
        (dict(backbone=NAMED, backbone_kwargs=dict(window_size=16)), False),
        (dict(backbone='resnet50'), False),
        (dict(backbone=None), False),
    ],
)
def test_a_backbone_that_a_config_names_is_a_release(config, known, monkeypatch):
    """Where `backbone` stands in the place of `backbone_config`. Bug: its windows are unknown, or a changed model gets
    those of the release."""
    small = dict(embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    monkeypatch.setitem(VARIANTS, 'tiny', Variant(**small))
    weights, _ = export_state_dict(SwinTransformerV2(**small).state_dict(), 'huggingface')
    save_file({f'backbone.{key}': tensor for key, tensor in weights.items()}, 'model.safetensors')
    Path('config.json').write_text(json.dumps(config))
    loaded = open_checkpoint('.')
    assert plain(loaded.pretrained_window_sizes) == ([8] * 4 if known else None)
