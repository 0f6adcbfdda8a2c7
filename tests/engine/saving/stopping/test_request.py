"""What tells a run to end: durations, and what a time limit needs of a config."""

import pytest
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop
from support.tiny_training import write_config

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.stopping.request import SHARED, Request, seconds
from swinv2_mm.errors import UserError

OWN_LOOP = "train_cfg = dict(type='OwnLoop', max_epochs=1)\n"


@LOOPS.register_module()
class OwnLoop(EpochBasedTrainLoop):
    """A loop that may do other things behind an iteration."""


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('11:50:00', 42600), ('0:00:07', 7), ('1-12:00:05', 129605), ('11h50m', 42600), ('90m', 5400), ('2d', 172800)],
)
def test_reads_durations(text, expected):
    """Bug: hours read as minutes."""
    assert seconds(text) == expected


@pytest.mark.parametrize('text', ['', '11:50', '11', '1:60:00', 'soon', '-1:00:00', '1.5h'])
def test_refuses_what_may_mean_two_things(text):
    """Bug: 11:50, minutes to Slurm and hours to people, is taken for either."""
    with pytest.raises(UserError, match='11:50:00'):
        seconds(text)


def test_reads_what_the_script_was_told(tmp_path, monkeypatch):
    """Bug: a file that is being written, and so empty, ends the run with an error."""
    monkeypatch.setenv(SHARED, str(tmp_path))
    request = Request()
    assert request.reason() == 0
    (tmp_path / 'told').touch()
    assert request.reason() == 0
    (tmp_path / 'told').write_text('10\n')
    assert request.reason() == 10


@pytest.mark.parametrize(
    ('extra', 'key'),
    [
        ("default_hooks['checkpoint'] = None\n", 'default_hooks.checkpoint'),
        (OWN_LOOP, 'train_cfg'),
    ],
)
def test_a_limit_that_nothing_could_keep_is_refused(extra, key, tmp_path, own_process):
    """Bug: a time limit without effect."""
    config = write_config(tmp_path, f'{key}.py', extra=extra)
    with pytest.raises(UserError, match=f'--max-time 1:00:00: {key} '):
        train(prepare_training(config, work_dir=str(tmp_path / 'run'), max_time='1:00:00'))
