"""SimMIM between our names and Microsoft's, whole, and from a pre-training to the backbone of a detector."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from safetensors.torch import load_file
from support import simmim_reference as reference
from support.tiny_layers import assert_close

from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.files import read_file
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.weights import check_load_from, check_pretrained
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
DEPTHS, WINDOWS, PRETRAINED = (2, 1, 3), [8, 4, 2], [12, 6, 3]
BACKBONE = dict(type='swinv2_mm.SwinTransformerV2', embed_dims=8, depths=DEPTHS, num_heads=(1, 2, 2))
MODEL = dict(type='swinv2_mm.SimMIM', backbone=dict(BACKBONE, window_size=WINDOWS), mask_patch_size=16)
DETECTOR = dict(BACKBONE, window_size=5, out_indices=(0, 1, 2))
REST = ['mask_token', 'decoder.weight', 'decoder.bias']
THEIRS = ['encoder.mask_token', 'decoder.0.weight', 'decoder.0.bias']


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))


@pytest.fixture
def model(randomize):
    """A pre-training whose windows were fine-tuned once already."""
    backbone = dict(BACKBONE, window_size=WINDOWS, pretrained_window_sizes=PRETRAINED)
    return randomize(MODELS.build(dict(MODEL, backbone=backbone))).eval()


@pytest.fixture
def ours(model):
    """The ``state_dict`` of ``epoch_2.pth``."""
    state = model.state_dict()
    torch.save(dict(state_dict=state, meta=dict(epoch=2)), 'epoch_2.pth')
    return state


@pytest.fixture
def theirs(ours):
    """The weights of ``theirs.pth`` as Microsoft's code saves them."""
    backbone = {key.removeprefix('backbone.'): tensor for key, tensor in ours.items() if key.startswith('backbone.')}
    learned = {f'encoder.{key}': tensor for key, tensor in export_state_dict(backbone, 'microsoft')[0].items()}
    learned |= {key: ours[our] for our, key in zip(REST, THEIRS, strict=True)}
    tables = {}
    for i, (depth, w, p) in enumerate(zip(DEPTHS, WINDOWS, PRETRAINED, strict=True)):
        c = 8 * torch.arange(1.0 - w, w) / (p - 1)
        axis = c.sign() * (1 + c.abs()).log2() / 3
        for j in range(depth):
            attn = f'encoder.layers.{i}.blocks.{j}.attn.'
            table = torch.stack(torch.meshgrid(axis, axis, indexing='ij'), dim=-1)[None]
            tables |= {attn + 'relative_coords_table': table, attn + 'relative_position_index': torch.zeros(w**2, w**2)}
    torch.save({'model': learned | tables, 'epoch': 799}, 'theirs.pth')
    return learned


def same(state, others):
    return state.keys() == others.keys() and all(torch.equal(state[key], others[key]) for key in state)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_run_goes_to_microsoft_and_back(suffix, ours, theirs, run_tool):
    """Bit for bit, with the windows. Bug: a part that is left behind, or under a name that is not theirs."""
    assert run_tool('convert_ckpt', 'epoch_2.pth', f'out.{suffix}', '--to', 'simmim') == 0
    assert same(load_file('out.safetensors') if suffix == 'safetensors' else torch.load('out.pth')['model'], theirs)
    assert run_tool('convert_ckpt', f'out.{suffix}', 'back.pth') == 0
    assert same(torch.load('back.pth')['state_dict'], ours)


def test_theirs_become_a_model_and_come_back(ours, theirs, run_tool, capsys):
    """Every key is accounted for, and the lines that are printed go on from the file. Bug: a decoder from noise."""
    assert run_tool('convert_ckpt', 'theirs.pth', 'ours.pth', '--json') == 0
    report = json.loads(capsys.readouterr().out)
    assert same(read_file('ours.pth')['state_dict'], ours)
    assert set(report['sources']) == ours.keys() - {'backbone.pretrained_windows'}
    used = [key for keys in report['sources'].values() for key in keys]
    assert sorted([*used, *report['dropped']]) == sorted(torch.load('theirs.pth')['model'])
    assert report['missing'] == [] and report['loaded'] == len(report['sources'])
    assert run_tool('convert_ckpt', 'ours.pth', 'back.pth', '--to', 'simmim') == 0
    assert same(torch.load('back.pth')['model'], theirs)

    capsys.readouterr()
    assert run_tool('convert_ckpt', 'theirs.pth', 'ours.safetensors') == 0
    lines = capsys.readouterr().out.partition('backbone=')[2]
    backbone, _, load_from = lines.partition('\nload_from=')
    cfg = Config(dict(model=dict(MODEL, backbone=eval(backbone)), load_from=eval(load_from)))
    built = MODELS.build(cfg.model)
    check_load_from(cfg, Context(('train',), model=built))
    assert load_checkpoint(built, cfg.load_from, strict=True)
    assert same(built.state_dict(), ours)


def test_a_model_of_hugging_face_paints_the_same(randomize, run_tool, tmp_path):
    """From its own folder to our SimMIM. Bug: a decoder whose channels have another order, or a mask token of another
    model."""
    pytest.importorskip('transformers', reason='the peer to compare with is not installed')
    peer = randomize(reference.hugging_face(64, 8)).eval()
    peer.save_pretrained('peer')
    assert run_tool('convert_ckpt', 'peer', 'ours.pth') == 0
    backbone = dict(BACKBONE, **reference.SIZE, window_size=[8, 8, 4, 2], mask_padding=False)
    model = MODELS.build(dict(MODEL, backbone=backbone, mask_patch_size=32)).eval()
    load_checkpoint(model, 'ours.pth', strict=True)
    images, mask = torch.randn(2, 3, 64, 64), reference.drawn(2, 2, 2)
    with torch.inference_mode():
        assert_close(model(images, mask=mask), reference.painted_by(peer, images, mask)[0], 1e-4)


def test_a_run_goes_to_hugging_face_and_back(ours, run_tool, capsys):
    """Under their names, bit for bit. Bug: a pre-training of theirs that goes on with a decoder from noise."""
    assert run_tool('convert_ckpt', 'epoch_2.pth', 'out.safetensors', '--to', 'huggingface', '--json') == 0
    report = json.loads(capsys.readouterr().out)
    assert report['loaded'] == len(ours) - 1 and report['lost'] == []  # but for the windows, which are read as such
    theirs = load_file('out.safetensors')
    for our, key in zip(REST, ['swinv2.embeddings.mask_token', 'decoder.0.weight', 'decoder.0.bias'], strict=True):
        assert torch.equal(theirs.pop(key), ours[our])
    assert {key.split('.')[1] for key in theirs} == {'embeddings', 'encoder', 'layernorm'}
    assert all(key.startswith('swinv2.') for key in theirs)
    assert run_tool('convert_ckpt', 'out.safetensors', 'back.pth', '--pretrained-window-sizes', '12', '6', '3') == 0
    assert same(torch.load('back.pth')['state_dict'], ours)


def test_a_model_of_hugging_face_takes_all(randomize, run_tool):
    """Strictly, from a run and back from their own file. Bug: a name that only looks like theirs."""
    pytest.importorskip('transformers', reason='the peer to compare with is not installed')
    peer = randomize(reference.hugging_face(64, 8)).eval()
    peer.save_pretrained('peer')
    assert run_tool('convert_ckpt', 'peer', 'ours.pth') == 0
    assert run_tool('convert_ckpt', 'ours.pth', 'theirs.safetensors', '--to', 'huggingface') == 0
    state, expected = load_file('theirs.safetensors'), load_file('peer/model.safetensors')
    learned = {key: tensor for key, tensor in expected.items() if 'relative_' not in key}
    assert same(state, learned)
    fresh = reference.hugging_face(64, 8)
    tables = {key: tensor for key, tensor in fresh.state_dict().items() if 'relative_' in key}  # of their windows
    fresh.load_state_dict(state | tables, strict=True)
    assert same(fresh.state_dict(), peer.state_dict())


@pytest.mark.parametrize('target', ['microsoft', 'timm'])
def test_other_code_bases_get_the_backbone(target, ours, run_tool, capsys):
    """And the report says what they do not get. Bug: a mask token in a file of a backbone, or a silent loss."""
    assert run_tool('convert_ckpt', 'epoch_2.pth', 'out.pth', '--to', target, '--json') == 0
    report = json.loads(capsys.readouterr().out)
    assert set(REST) <= report['dropped'].keys()
    assert run_tool('convert_ckpt', 'out.pth', 'back.pth', '--pretrained-window-sizes', '12', '6', '3') == 0
    backbone = {key.removeprefix('backbone.'): t for key, t in ours.items() if key.startswith('backbone.')}
    assert same(torch.load('back.pth')['state_dict'], backbone)


def without(part):
    return lambda state: {key: tensor for key, tensor in state.items() if key != part}


def changed(part, change):
    return lambda state: state | {part: change(state[part])}


DAMAGED = {
    'decoder.bias is missing': without('decoder.bias'),
    'mask_token is missing': without('mask_token'),
    r'mask_token \(1, 8\) instead of \(1, 1, 8\)': changed('mask_token', lambda t: t[0]),
    r'decoder.weight \(760, 32, 1, 1\) instead of \(768': changed('decoder.weight', lambda t: t[8:]),
    'NaN or infinity: decoder.bias': changed('decoder.bias', lambda t: t * math.nan),
    'no floating-point numbers: mask_token': changed('mask_token', torch.Tensor.long),
    'mask_token, decoder.weight, decoder.bias are missing.*--to microsoft': lambda state: {
        key.removeprefix('backbone.'): tensor for key, tensor in state.items() if key.startswith('backbone.')
    },
}


@pytest.mark.parametrize('words', DAMAGED)
def test_half_a_model_is_refused(words, ours, run_tool, capsys):
    """By the tool and by ``init_cfg`` of a SimMIM, in its dry run. Bug: a decoder that is noise, or of another size."""
    torch.save(dict(state_dict=DAMAGED[words](ours), meta={}), 'epoch_2.pth')
    assert run_tool('convert_ckpt', 'epoch_2.pth', 'out.pth', '--to', 'simmim') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and not Path('out.pth').exists()
    init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint='epoch_2.pth')
    cfg = Config(dict(model=dict(MODEL, init_cfg=init_cfg)))
    with pytest.raises(UserError, match=f'model.init_cfg: epoch_2.pth.*{words}'):
        check_pretrained(cfg)
    model = MODELS.build(cfg.model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=words):
        model.init_weights()
    assert same(model.state_dict(), before)
    with pytest.raises(UserError, match=words):
        raise UserError(err)


def test_a_lone_mask_token_is_left_out_by_name(theirs, run_tool, capsys):
    """Encoders are shared without their decoder. Bug: a backbone that is refused for what it does not need."""
    state = {key: tensor for key, tensor in torch.load('theirs.pth')['model'].items() if 'decoder' not in key}
    torch.save({'model': state}, 'encoder.pth')
    assert run_tool('convert_ckpt', 'encoder.pth', 'out.pth', '--json') == 0
    assert 'encoder.mask_token' in json.loads(capsys.readouterr().out)['dropped']
    assert 'patch_embed.proj.weight' in torch.load('out.pth')['state_dict']


@pytest.mark.parametrize('file', ['theirs.pth', 'peer.safetensors', 'backbone.pth'])
def test_load_from_names_the_line_that_takes_the_file(file, ours, theirs, run_tool):
    """Followed, the advice fills the model. Bug: a way for backbones only, which leaves the decoder to noise."""
    assert run_tool('convert_ckpt', 'epoch_2.pth', 'peer.safetensors', '--to', 'huggingface') == 0
    weights = {key.removeprefix('backbone.'): tensor for key, tensor in ours.items() if key.startswith('backbone.')}
    torch.save(dict(state_dict=weights), 'backbone.pth')
    backbone = dict(BACKBONE, window_size=WINDOWS, pretrained_window_sizes=PRETRAINED)
    cfg = Config(dict(model=dict(MODEL, backbone=backbone), load_from=file))
    with pytest.raises(UserError) as told:
        check_load_from(cfg, Context(('train',), model=MODELS.build(cfg.model)))
    advice = dict(re.findall(r'For (.+?) pass --cfg-options (.+?) instead', str(told.value)))
    options = dict(option.split('=') for option in advice['a backbone' if 'back' in file else 'a whole SimMIM'].split())
    assert options.pop('load_from') == 'None'
    cfg.merge_from_dict(options)
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert same(*((model.backbone.state_dict(), weights) if 'back' in file else (model.state_dict(), ours)))


@pytest.mark.parametrize('file', ['epoch_2.pth', 'theirs.pth', 'ours.pth'])
def test_a_pre_training_goes_on_from_a_file(file, ours, theirs, run_tool):
    """``init_cfg`` of the model fills all of it, at another window. Bug: a decoder from noise."""
    assert run_tool('convert_ckpt', 'theirs.pth', 'ours.pth') == 0
    init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=file)
    cfg = Config(dict(model=dict(MODEL, backbone=dict(BACKBONE, window_size=5), init_cfg=init_cfg)))
    check_pretrained(cfg)
    built = MODELS.build(cfg.model)
    built.init_weights()
    assert same(built.state_dict(), ours)
    assert built.backbone.window_size[0] == (5, 5)
    assert built.backbone.pretrained_window_sizes == ((12, 12), (6, 6), (3, 3))


def test_a_model_of_another_size_is_refused(ours):
    """Channels would be adapted in a backbone; no decoder can be. Bug: a decoder from noise behind learned blocks."""
    init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint='epoch_2.pth')
    for change in (dict(in_channels=1), dict(depths=(2, 1, 2)), dict(pretrained_window_sizes=[12, 6, 4])):
        cfg = Config(dict(model=dict(MODEL, backbone=dict(BACKBONE, window_size=5) | change, init_cfg=init_cfg)))
        with pytest.raises(UserError, match=r'^model\.init_cfg: .*(does not fit|contradicts)'):
            check_pretrained(cfg)


@pytest.mark.parametrize(
    ('file', 'averaged'), [('epoch_2.pth', False), ('epoch_2.pth', True), ('theirs.pth', False), ('ours.pth', False)]
)
def test_a_detector_starts_from_a_pre_training(file, averaged, ours, theirs, run_tool):
    """Accepted by the dry run, complete but for norms, at another window. Bug: a bias that is normalised by the window
    of the detector."""
    if averaged:  # as mmengine's EMAHook saves it
        noise = {key: torch.zeros_like(tensor) for key, tensor in ours.items()}
        torch.save(dict(state_dict=ours, ema_state_dict=noise | {'steps': torch.tensor(1)}, meta={}), 'epoch_2.pth')
    assert run_tool('convert_ckpt', 'theirs.pth', 'ours.pth') == 0
    init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=file, ema=averaged)
    cfg = Config(dict(model=dict(type='Detector', backbone=dict(DETECTOR, init_cfg=init_cfg))))
    check_pretrained(cfg)
    backbone = MODELS.build(cfg.model.backbone)
    assert backbone.pretrained_window_sizes == ((12, 12), (6, 6), (3, 3))
    backbone.init_weights()
    assert backbone.window_size == ((5, 5),) * 3
    state = backbone.state_dict()
    expected = {key.removeprefix('backbone.'): t for key, t in ours.items() if key.startswith('backbone.')}
    fresh = {key: state[key] for key in state.keys() - expected.keys()}
    assert {key.split('.')[0] for key in fresh} == {'norm0', 'norm1'}
    assert same(state, expected | fresh)
