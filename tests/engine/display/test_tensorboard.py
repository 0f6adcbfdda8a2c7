"""Numbers in TensorBoard: there without being asked for, and missed without harm."""

from support.tiny_training import write_config

from swinv2_mm.engine.display import tensorboard
from swinv2_mm.engine.runs import prepare_training, train


def test_a_training_logs_to_tensorboard_once(own_process, tmp_path):
    """Bug: no scalars, or each of them twice where a config, perhaps one that a run has dumped, names it already."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    extra = "default_hooks['logger'] = dict(type='LoggerHook', interval=1)\n"
    cfg = prepare_training(write_config(tmp_path, extra=extra))
    tensorboard.log_to_tensorboard(cfg)
    train(cfg)
    (events,) = (tmp_path / 'work_dirs').rglob('*tfevents*')
    scalars = EventAccumulator(str(events)).Reload()
    assert [event.step for event in scalars.Scalars('loss')] == [*range(1, 13)]
    assert [event.step for event in scalars.Scalars('error')] == [1, 2, 3]
    assert [*(tmp_path / 'work_dirs').rglob('scalars.json')]


def test_without_tensorboard_one_line_says_how_to_get_it(own_process, tmp_path, monkeypatch, capsys):
    """Bug: an ImportError after the model was built, or silence."""
    monkeypatch.setattr(tensorboard, 'find_spec', lambda name: None)
    cfg = prepare_training(write_config(tmp_path))
    assert cfg.get('visualizer') is None
    assert capsys.readouterr().err.count('pip install tensorboard') == 1
