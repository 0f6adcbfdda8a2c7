"""``tools/predict.py``: its two forms, what it prints, and its exit codes."""

import json

import pytest
import torch
from support.tiny_models import write_checkpoint
from support.tiny_pictures import noise, write


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp('model') / 'model.pth', 'upernet_swinv2_t_shapes')


def test_with_and_without_a_config(run_tool, model, tmp_path, capsys):
    """Bug: the config is taken for a checkpoint, or a flag of the command line gets lost."""
    write(tmp_path / 'photos' / 'a.png', noise(20, 30, 3))
    (tmp_path / 'my.py').write_text(torch.load(model)['meta']['cfg'])
    assert run_tool('predict', model, 'photos', '--device', 'cpu') == 0
    assert '1 pictures and frames, 0 inputs kept: predictions' in capsys.readouterr().out
    options = '--out', 'other', '--amp', '--window-size', '4', '--no-pictures', '--tile', '32', '--device', 'cpu'
    assert run_tool('predict', 'my.py', model, 'photos/*.png', *options) == 0
    (image,) = json.loads((tmp_path / 'other' / 'predictions.json').read_text())['images']
    assert image['file'] == 'a.png' and image['picture'] is None and (tmp_path / 'other' / image['map']).exists()
    settings = json.loads((tmp_path / 'other' / '.predict.jsonl').read_text().splitlines()[0])
    assert (settings['--amp'], settings['--window-size'], settings['--tile']) == ('auto', 4, 32)


def test_corrupt_pictures_are_told_at_the_end(run_tool, model, tmp_path, capsys):
    """Bug: a run that could read nothing ends as a success, or one corrupt picture costs all others."""
    write(tmp_path / 'photos' / 'a.png', noise(20, 30, 3))
    (tmp_path / 'photos' / 'b.png').write_text('no picture')
    assert run_tool('predict', model, 'photos', '--device', 'cpu') == 2
    assert '1 inputs were passed over, all others are predicted: b.png' in capsys.readouterr().err
    assert len(json.loads((tmp_path / 'predictions' / 'predictions.json').read_text())['images']) == 1


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['my.py'], 'the checkpoint is missing'),
        (['model.pth'], 'an input is missing'),
        (['model.pth', 'missing.jpg'], 'missing.jpg does not exist'),
        (['model.pth', '.', '--batch-size', 'two'], '--batch-size'),
    ],
)
def test_mistakes_end_in_a_sentence(run_tool, tmp_path, capsys, arguments, words):
    """Bug: a traceback, or a folder of predictions that are none."""
    assert run_tool('predict', *arguments) == 2
    assert words in capsys.readouterr().err and not [*tmp_path.iterdir()]
