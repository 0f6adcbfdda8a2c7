"""``init_cfg=dict(type='swinv2_mm.Pretrained')`` fills the backbone completely, or fails and says why."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors.torch import save_file

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.files import write_file
from swinv2_mm.engine.checks.context import Context
from swinv2_mm.engine.checks.weights import check_load_from, check_pretrained, starts_from_noise
from swinv2_mm.engine.runs.complete import set_input_size
from swinv2_mm.errors import UserError

BACKBONE = {
    'type': 'swinv2_mm.SwinTransformerV2',
    'embed_dims': 8,
    'depths': (1, 2),
    'num_heads': (1, 2),
    'out_indices': (0, 1),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    return tmp_path / 'hub'


@pytest.fixture
def log(monkeypatch):
    """What is logged, as ``(level, message)``."""
    lines = []

    def note(message, logger, level=logging.INFO):
        lines.append(SimpleNamespace(level=level, message=message))

    monkeypatch.setattr('swinv2_mm.engine.recipe.pretrained.print_log', note)
    return lines


@pytest.fixture
def state(randomize):
    """Weights of before, which do not tell their pretrained windows."""
    state = randomize(SwinTransformerV2(**{k: v for k, v in BACKBONE.items() if k != 'type'})).state_dict()
    del state['pretrained_windows']
    return state


def tables(windows, pretrained):
    """Coordinate tables as Microsoft's code saves them."""
    out = {}
    for i, (w, p) in enumerate(zip(windows, pretrained, strict=True)):
        axis = 8 * torch.arange(1 - w, w) / (p - 1)
        axis = axis.sign() * torch.log2(1 + axis.abs()) / 3
        for j in range((1, 2)[i]):
            out[f'layers.{i}.blocks.{j}.attn.relative_coords_table'] = torch.stack(
                torch.meshgrid(axis, axis, indexing='ij'), dim=-1
            )[None]
    return out


@pytest.fixture
def microsoft(state, tmp_path):
    """A file of a classifier, trained with windows 8, 4 and fine-tuned with 16, 8."""
    weights, _ = export_state_dict(state, 'microsoft')
    torch.save({'model': weights | tables((16, 8), (8, 4)) | {'head.weight': torch.ones(3, 16)}}, tmp_path / 'ms.pth')
    return tmp_path / 'ms.pth'


def build(checkpoint, window_size=8, init=None, **changes):
    init_cfg = {'type': 'swinv2_mm.Pretrained', 'checkpoint': str(checkpoint), **(init or {})}
    return MODELS.build({**BACKBONE, 'window_size': window_size, 'init_cfg': init_cfg, **changes})


def detector(checkpoint, **changes):
    """The config of a model whose backbone starts from a checkpoint."""
    init_cfg = dict(type='swinv2_mm.Pretrained', checkpoint=str(checkpoint))
    return dict(type='Detector', backbone=dict(BACKBONE, init_cfg=init_cfg, **changes))


def loaded(model):
    model.init_weights()
    return model.state_dict()


def test_loads_another_layout_without_a_step_between(microsoft, state, log):
    """Every tensor arrives, the classifier's norm becomes that of the last stage, the windows are the checkpoint's.

    Prevents: random weights, and a normaliser that is the window of the config.
    """
    model = build(microsoft, window_size=12)
    assert model.pretrained_window_sizes == ((8, 8), (4, 4))
    assert [block.attn.pretrained_window_size for stage in model.stages for block in stage.blocks] == [
        (8, 8),
        (4, 4),
        (4, 4),
    ]
    got = loaded(model)
    assert all(torch.equal(got[key], value) for key, value in state.items() if not key.startswith('norm0'))
    assert torch.equal(got['norm0.weight'], torch.ones(8))
    lines = [line.message for line in log]
    assert len(lines) == 1
    for words in ('(microsoft, SHA-256 ', 'norm0 start', 'window [12, 12]', 'pretrained window [8, 4]'):
        assert words in lines[0]


@pytest.mark.parametrize('window', [4, 7, (5, 9), [(3, 4), (8, 6)]])
def test_any_window_takes_the_same_weights(microsoft, state, window):
    """What the position bias is for. Prevents: a shape that depends on the window."""
    window = [window] * 2 if isinstance(window, tuple) else window
    got = loaded(build(microsoft, window_size=window))
    assert all(torch.equal(got[key], value) for key, value in state.items() if not key.startswith('norm0'))


def test_the_right_windows_are_named(microsoft):
    """Prevents: weights under another normaliser, which shifts every position bias without a word."""
    model = build(microsoft, pretrained_window_sizes=16)
    with pytest.raises(UserError, match=r'pretrained_window_sizes=\[16, 16\].*Set pretrained_window_sizes=\[8, 4\]'):
        model.init_weights()
    build(microsoft, pretrained_window_sizes=(8, 4)).init_weights()


def test_a_released_name_tells_its_windows_without_being_fetched():
    """Prevents: a test run that needs the ImageNet weights, or that scales the bias by the config's window."""
    model = MODELS.build(
        dict(
            type='swinv2_mm.SwinTransformerV2',
            arch='base',
            window_size=32,
            init_cfg=dict(
                type='swinv2_mm.Pretrained', checkpoint='swinv2_base_patch4_window12to24_192to384_22kto1k_ft'
            ),
        )
    )
    assert model.pretrained_window_sizes == ((12, 12), (12, 12), (12, 12), (6, 6))


def test_a_file_that_does_not_tell_its_windows(state, tmp_path):
    """timm saves no tables. Prevents: a guess."""
    torch.save(export_state_dict(state, 'timm')[0], tmp_path / 'timm.pth')
    with pytest.raises(UserError, match=r'timm\.pth does not tell.*pretrained_window_sizes'):
        build(tmp_path / 'timm.pth').init_weights()
    with pytest.raises(RuntimeError, match=r'was left to the weights, which have not told it.*timm\.pth does not tell'):
        build(tmp_path / 'timm.pth')(torch.rand(1, 3, 32, 32))
    got = loaded(build(tmp_path / 'timm.pth', pretrained_window_sizes=8))
    assert torch.equal(got['stages.1.blocks.0.attn.qkv.weight'], state['stages.1.blocks.0.attn.qkv.weight'])


def test_weights_that_are_gone_when_the_model_is_built_again(microsoft, tmp_path):
    """A model that another file fills needs them no more. Prevents: a detector that cannot be tested without ImageNet
    weights, or that computes with a guessed normaliser until somebody notices.
    """
    model = build(tmp_path / 'gone.pth', window_size=16)
    with pytest.raises(UserError, match=r'gone\.pth is neither'):
        model.init_weights()
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match=r'have not told.*gone\.pth is neither.*give the backbone its pretrained_'):
        model(image)
    trained = build(microsoft, window_size=16)
    trained.init_weights()
    model.load_state_dict(trained.state_dict())
    assert model.pretrained_window_sizes == ((8, 8), (4, 4))
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(model.eval()(image), trained.eval()(image), strict=True))
    build(tmp_path / 'gone.pth', pretrained_window_sizes=8)


@pytest.mark.parametrize(
    'changes',
    [
        dict(embed_dims=16),
        dict(depths=(1, 3)),
        dict(depths=(1, 1)),
        dict(num_heads=(2, 4)),
        dict(mlp_ratio=2.0),
        dict(qkv_bias=False),
    ],
    ids=str,
)
def test_another_size_fails(microsoft, changes):
    """Prevents: a backbone that is partly random, or weights that are partly left out."""
    model = build(microsoft, **changes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r'ms\.pth does not fit the backbone.*[cC]ompare arch'):
        model.init_weights()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fewer_stages_or_outputs_than_the_file(microsoft, state):
    """A backbone may stop early. Prevents: refusing the stages that nobody asked for, or norms without an output."""
    got = loaded(build(microsoft, depths=(1,), num_heads=(1,), out_indices=(0,), pretrained_window_sizes=8))
    assert torch.equal(got['stages.0.blocks.0.attn.proj.weight'], state['stages.0.blocks.0.attn.proj.weight'])
    assert 'norm1.weight' not in loaded(build(microsoft, out_indices=(0,)))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(in_channels=1), 'from 3 channels and patches of 4 pixels to 1 and 4'),
        (dict(in_channels=5), 'from 3 channels and patches of 4 pixels to 5 and 4'),
        (dict(patch_size=8), 'from 3 channels and patches of 4 pixels to 3 and 8'),
        (dict(patch_size=2, in_channels=4), 'from 3 channels and patches of 4 pixels to 4 and 2'),
    ],
)
def test_other_images_adapt_the_patch_embedding(microsoft, state, changes, words, log):
    """With a warning; everything else is untouched. Prevents: a random patch embedding."""
    model = build(microsoft, **changes)
    got = loaded(model)
    assert any(words in line.message and line.level == logging.WARNING for line in log)
    key = 'patch_embed.proj.weight'
    assert got[key].shape[1:] == (model.patch_embed.proj.in_channels, model.patch_size, model.patch_size)
    assert got[key].abs().sum() > 0
    assert torch.equal(got['patch_embed.proj.bias'], state['patch_embed.proj.bias'])


def test_the_backbone_of_a_detector_and_its_average(state, tmp_path):
    """Prevents: heads mistaken for the backbone, and the trained weights taken for their average."""
    average = {f'backbone.{key}': value + 1 for key, value in state.items()}
    trained = {f'backbone.{key}': value for key, value in state.items()}
    torch.save({'model': trained, 'model_ema': average}, tmp_path / 'run.pth')
    for ema, expected in ((False, trained), (True, average)):
        got = loaded(build(tmp_path / 'run.pth', init=dict(ema=ema), pretrained_window_sizes=8))
        assert all(torch.equal(got[key], expected[f'backbone.{key}']) for key in state)


def test_belongs_into_a_backbone(microsoft):
    """Prevents: a detector whose init_cfg fills nothing."""
    from mmengine.model import BaseModule

    with pytest.raises(UserError, match=r'model\.backbone\.init_cfg'):
        BaseModule(init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint=str(microsoft))).init_weights()


def test_padding_is_told_for_the_size_of_the_pipeline(microsoft, log):
    """Prevents: windows that cost four times the tokens without anybody noticing."""
    resize = dict(type='RandomChoiceResize', scales=[(64, 32), (100, 36)], keep_ratio=True)
    dataset = dict(type='Repeat', dataset=dict(pipeline=[resize, dict(type='Pack')]))
    cfg = Config(dict(model=detector(microsoft, window_size=8), train_dataloader=dict(dataset=dataset)))
    check_pretrained(cfg)
    set_input_size(cfg)
    assert not starts_from_noise(cfg)
    assert tuple(cfg.model.backbone.init_cfg.input_size) == (36, 100)
    MODELS.build(cfg.model.backbone).init_weights()
    # 9 x 25 tokens become 16 x 32; 5 x 13 become 5 x 16.
    assert f'at 36x100 windows compute {512 / 225:.2f} {80 / 65:.2f} tokens' in log[0].message


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800))], (800, 1333)),
        ([dict(type='RandomResize', scale=(2048, 512)), dict(type='RandomCrop', crop_size=(512, 640))], (512, 640)),
        ([dict(type='RandomResize', scale=[(100, 50), (200, 100)])], (100, 200)),
        ([dict(type='RandomCrop', crop_size=64)], (64, 64)),
        ([dict(type='RandomCrop', crop_size=(0.5, 0.5), crop_type='relative')], None),
        ([], None),
    ],
)
def test_the_size_of_the_images_is_read_off_the_pipeline(pipeline, size):
    """Scales are (columns, rows), crops (rows, columns). Prevents: the padding cost of a portrait for a landscape."""
    cfg = Config(dict(model=detector('x'), train_dataloader=dict(dataset=dict(pipeline=pipeline))))
    set_input_size(cfg)
    told = cfg.model.backbone.init_cfg.get('input_size')
    assert (None if told is None else tuple(told)) == size
    cfg.model.data_preprocessor = dict(size=(7, 9))
    cfg.model.backbone.init_cfg.pop('input_size', None)
    set_input_size(cfg)
    assert tuple(cfg.model.backbone.init_cfg.input_size) == (7, 9)


def test_a_training_is_refused_before_it_starts(state, tmp_path):
    """Prevents: minutes of set-up before the weights turn out not to be there, or to be for other windows."""
    torch.save({'layers.0.blocks.0.attn.relative_position_bias_table': torch.ones(1)}, tmp_path / 'v1.pth')
    cfg = Config(dict(model=detector(tmp_path / 'v1.pth')))
    with pytest.raises(UserError, match=r'model\.backbone\.init_cfg: .*Swin V1.*init_cfg=None'):
        check_pretrained(cfg)
    # mmengine's own initialisation, with a converted file that knows its windows
    write_file(state, tmp_path / 'ours.safetensors', dict(pretrained_window_sizes=[8, 4], depths=[1, 2]))
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'ours.safetensors'))
    cfg = Config(dict(model=dict(type='Detector', backbone=dict(BACKBONE, init_cfg=init_cfg))))
    with pytest.raises(UserError, match=r'pretrained_window_sizes=\[8, 4\]; the backbone has \[8, 8\]'):
        check_pretrained(cfg)
    cfg.model.backbone.pretrained_window_sizes = (8, 4)
    check_pretrained(cfg)
    got = loaded(MODELS.build(cfg.model.backbone))
    assert all(torch.equal(got[key], value) for key, value in state.items())


def test_hugging_face_folders_tell_their_windows(state, tmp_path):
    """Prevents: the window of 16 taken for the normaliser of the last stage, which only has a map of 8."""
    save_file(export_state_dict(state, 'huggingface')[0], tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text(
        json.dumps(
            dict(model_type='swinv2', image_size=64, patch_size=4, window_size=16, pretrained_window_sizes=[0, 0])
        )
    )
    assert build(tmp_path).pretrained_window_sizes == ((16, 16), (8, 8))


@pytest.mark.parametrize('place', [0, 1])
def test_loaded_weights_are_not_overwritten(microsoft, state, place):
    """Whatever the order of several initialisations. Prevents: random weights after a log that says all are loaded."""
    init_cfg = [dict(type='TruncNormal', layer='Linear', std=1.0)]
    init_cfg.insert(place, dict(type='swinv2_mm.Pretrained', checkpoint=str(microsoft)))
    model = MODELS.build({**BACKBONE, 'window_size': 8, 'init_cfg': init_cfg})
    key = 'stages.1.blocks.0.mlp.fc1.weight'
    assert torch.equal(loaded(model)[key], state[key])


def test_the_windows_outlive_the_checkpoint(microsoft):
    """They are in the weights that a run saves, and its config stays as it was written. Prevents: another normaliser
    once init_cfg is None or its file gone; a config that contradicts the next weights.
    """
    cfg = Config(dict(model=detector(microsoft, window_size=16)))
    check_pretrained(cfg)
    assert 'pretrained_window_sizes' not in cfg.model.backbone
    trained = MODELS.build(cfg.model.backbone)
    trained.init_weights()
    again = MODELS.build(cfg.model.backbone | dict(init_cfg=None))
    assert again.pretrained_window_sizes == ((16, 16), (16, 16))
    again.load_state_dict(trained.state_dict())
    assert again.pretrained_window_sizes == ((8, 8), (4, 4))
    cfg.model.backbone.update(depths=(1,), num_heads=(1,), out_indices=(0,))
    assert MODELS.build(cfg.model.backbone).pretrained_window_sizes == ((8, 8),)


def test_a_backbone_is_not_a_whole_model(state, tmp_path):
    """Prevents: load_from with a converted backbone, of which nothing is loaded and little is said."""
    model = torch.nn.Module()
    model.backbone = MODELS.build(BACKBONE)
    cfg, context = Config(dict(load_from=str(tmp_path / 'ours.pth'))), Context(('train',), model=model)
    write_file(state, tmp_path / 'ours.pth', {})
    with pytest.raises(UserError, match=r'a backbone alone.*load_from=None model\.backbone\.init_cfg\.type'):
        check_load_from(cfg, context)
    write_file({f'backbone.{key}': value for key, value in state.items()}, tmp_path / 'ours.pth', {})
    check_load_from(cfg, context)
