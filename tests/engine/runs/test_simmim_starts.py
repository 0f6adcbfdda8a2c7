"""Weights that a pre-training starts from: whose come last, and whether they are needed again."""

from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from support.resuming import same
from support.tiny_simmim import write_config

from swinv2_mm.engine.config import load_config
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint

pytestmark = pytest.mark.usefixtures('own_process')
PLACES = {'whole': 'model.init_cfg', 'backbone': 'model.backbone.init_cfg'}


@pytest.fixture
def files(randomize, tmp_path, monkeypatch):
    """The weights of a whole SimMIM and those of another one's backbone, in files ``whole.pth``, ``backbone.pth``."""
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path / 'hub'))
    write_config(tmp_path, train_cfg='dict(by_epoch=True, max_epochs=2)')
    models = [randomize(MODELS.build(load_config('simmim.py').model), seed) for seed in (1, 2)]
    weights = {'whole': models[0].state_dict(), 'backbone': models[1].backbone.state_dict()}
    for name, state in weights.items():
        torch.save(dict(state_dict=state, meta={}), f'{name}.pth')
    return weights


def start(name, kind='swinv2_mm.Pretrained'):
    return {f'{PLACES[name]}.type': kind, f'{PLACES[name]}.checkpoint': f'{name}.pth'}


@pytest.mark.parametrize('kind', ['swinv2_mm.Pretrained', 'Pretrained'])
@pytest.mark.parametrize('name', PLACES)
def test_a_run_resumes_without_the_file_it_started_from(name, kind, files, tmp_path):
    """And ends in the weights of the undisturbed run. Bug: a run that cannot go on, since weights are gone that its
    checkpoint replaces."""
    options = start(name, kind)
    for folder in ('straight', 'resumed'):
        resume = 'straight/epoch_1.pth' if folder == 'resumed' else None
        train(prepare_training('simmim.py', work_dir=folder, resume=resume, cfg_options=options))
        Path(f'{name}.pth').unlink(missing_ok=True)
        for kept in Path('hub').rglob('*.safetensors'):
            kept.unlink()
    ends = [read_checkpoint(latest_checkpoint(folder))['state_dict'] for folder in ('straight', 'resumed')]
    assert same(*ends)


@pytest.mark.parametrize('kind', ['swinv2_mm.Pretrained', 'Pretrained'])
@pytest.mark.parametrize('order', [1, -1])
def test_the_whole_model_comes_last(order, kind, files):
    """Whatever else initialises a part of it. Bug: a decoder in front of the backbone of another model."""
    noise, whole = dict(type='Normal', layer=['Linear', 'Conv2d'], std=9.0), dict(type=kind, checkpoint='whole.pth')
    cfg = load_config('simmim.py', start('backbone'))
    for init_cfg in (whole, [noise, whole][::order]):
        model = MODELS.build(cfg.model | dict(init_cfg=init_cfg))
        model.init_weights()
        assert same(model.state_dict(), files['whole'])
    model = MODELS.build(cfg.model | dict(init_cfg=noise))
    model.init_weights()
    assert same(model.backbone.state_dict(), files['backbone'])
