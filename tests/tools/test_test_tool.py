"""tools/test.py: the metrics, the predictions, and a checkpoint that belongs to the config."""

import pickle

import pytest
import torch
from support.tiny_training import write_config

from swinv2_mm.engine.saving.reading import read_checkpoint


def test_prints_the_metrics_and_saves_the_predictions(run_tool, tmp_path, trained, capsys):
    write_config(tmp_path)
    checkpoint = trained / 'epoch_3.pth'
    assert run_tool('test', 'tiny.py', checkpoint, '--out', 'out/predictions.pkl') == 0
    name, value = capsys.readouterr().out.splitlines()[-1].split()
    assert name == 'error'
    predictions = pickle.loads((tmp_path / 'out' / 'predictions.pkl').read_bytes())
    assert float(value) == pytest.approx(sum(predictions) / len(predictions), abs=1e-4) and len(predictions) == 8


def test_refuses_a_checkpoint_of_a_backbone(run_tool, tmp_path, trained, capsys):
    """Bug: a head that nothing was loaded into is tested, and its numbers are taken for those of the model."""
    write_config(tmp_path)
    state = read_checkpoint(trained / 'epoch_3.pth')['state_dict']
    torch.save({key: value for key, value in state.items() if key.startswith('backbone.')}, 'backbone.pth')
    assert run_tool('test', 'tiny.py', 'backbone.pth') == 2
    assert '2 of the' in (error := capsys.readouterr().err) and 'head.weight' in error
