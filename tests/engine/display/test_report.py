"""The picture of a run shows what was logged, while it goes, and never gets in its way."""

import json
import warnings

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from support.tiny_training import write_config

from swinv2_mm.engine.display import report
from swinv2_mm.engine.display.report import draw_report, running_median
from swinv2_mm.engine.display.report.run_log import read_run
from swinv2_mm.engine.runs import prepare_training, train

PNG = b'\x89PNG'


def log(work_dir, name, records, tail=''):
    """Write what mmengine logs; returns the work dir."""
    path = work_dir / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, records)) + '\n' + tail)
    return work_dir


def steps(begin, end, loss=1.0, **more):
    return [dict(iter=i, step=i, loss=loss, lr=1e-3, time=0.5, data_time=0.1, **more) for i in range(begin, end, 10)]


def texts(work_dirs, tmp_path):
    """All that is written in the picture of some runs."""
    with rc_context({'svg.fonttype': 'none'}):
        out = report.plot_runs([str(path) for path in work_dirs], str(tmp_path / 'picture.svg'))
    return out.read_text()


def test_a_later_log_counts_from_where_it_begins(tmp_path):
    """Bug: a resumed run's curve jumps back, or ends in what an older, longer run in the same folder had reached."""
    log(tmp_path, '20260101_000000', [*steps(10, 60, 9.0), dict(mIoU=5, step=50), *steps(60, 90, 9.0)])
    log(tmp_path, '20260102_000000', [*steps(30, 60), dict(mIoU=7, step=50)])
    run = read_run(tmp_path)
    assert [(r['iter'], r['loss']) for r in run.train] == [(10, 9), (20, 9), (30, 1), (40, 1), (50, 1)]
    assert [(r['iteration'], r['mIoU']) for r in run.val] == [(50, 7)] and run.resumed == [30]


def test_validations_lie_where_they_were(tmp_path):
    """Bug: validations, counted in epochs by one framework and in iterations by the other, at the wrong iteration."""
    records = []
    for epoch in (1, 2, 3):
        begin = 35 * (epoch - 1)
        records += [*steps(begin + 10, begin + 31, epoch=epoch), {'coco/bbox_mAP': 0.1, 'step': epoch}]
    detection = read_run(log(tmp_path / 'det', '20260101_000000', records))
    assert [record['iteration'] for record in detection.val] == [35, 70, 105]
    records = [*steps(10, 41), dict(mIoU=1.0, step=45), *steps(50, 91), dict(mIoU=2.0, step=90)]
    segmentation = read_run(log(tmp_path / 'seg', '20260101_000000', records))
    assert [record['iteration'] for record in segmentation.val] == [45, 90]


@pytest.mark.parametrize(
    ('records', 'tail'),
    [
        (steps(10, 41), '{"iter": 50, "lo'),
        ([*steps(10, 21, loss=float('nan')), *steps(20, 31)], ''),
        ([dict(iter=10, step=10)], ''),
        ([*steps(10, 21, loss=0.0), dict(error=float('nan'), step=20), dict(loss=-1.0, iter=30, step=30)], ''),
        ([*steps(10, 31, **{'d0.loss_cls': 1.0, **{f's{i}.loss': 1.0 for i in range(9)}, 'memory': 100})], ''),
    ],
    ids=['half a line', 'not a number', 'nothing', 'below zero', 'many losses'],
)
def test_any_log_is_drawn(records, tail, tmp_path):
    """Bug: the picture of a young, killed, diverged or unusual run is a traceback, or a page of warnings."""
    log(tmp_path, '20260101_000000', records, tail)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        draw_report([read_run(tmp_path)], tmp_path / 'report.png')
    assert (tmp_path / 'report.png').read_bytes().startswith(PNG)


def test_the_best_metric_is_a_number_and_runs_have_names(tmp_path):
    """Bug: a picture from which nobody can read what was reached, and which curve is whose."""
    for name, best in (('first', 0.519), ('second', 0.618)):
        log(
            tmp_path / name,
            '20260101_000000',
            [*steps(10, 31), {'coco/bbox_mAP': best, 'step': 30}, *steps(40, 61), {'coco/bbox_mAP': 0.1, 'step': 60}],
        )
    assert 'best bbox_mAP 0.519 (iteration 30)' in texts([tmp_path / 'first'], tmp_path)
    both = texts([tmp_path / 'first', tmp_path / 'second'], tmp_path)
    assert 'first: bbox_mAP: best 0.519' in both and 'second: bbox_mAP: best 0.618' in both


def test_a_failed_drawing_leaves_the_picture_before(tmp_path, monkeypatch):
    """Bug: whoever opens the picture of a running training finds half of one, or none."""
    log(tmp_path, '20260101_000000', steps(10, 31))
    (tmp_path / 'report.png').write_text('before')
    before = sorted(tmp_path.iterdir())

    def full_disk(self, path, **options):
        path.write_text('half')
        raise OSError('no space')

    monkeypatch.setattr(Figure, 'savefig', full_disk)
    with pytest.raises(OSError):
        draw_report([read_run(tmp_path)], tmp_path / 'report.png')
    assert (tmp_path / 'report.png').read_text() == 'before' and sorted(tmp_path.iterdir()) == before


def test_medians_follow_the_values_and_ignore_what_is_none():
    """Bug: smoothing that shifts, that shortens the curve, or that one spike or NaN bends."""
    line = np.arange(200.0)
    spiked = line.copy()
    spiked[50], spiked[120] = 1e6, np.nan
    assert np.abs(running_median(spiked) - line).max() <= 5
    assert running_median(line)[100] == 100
    assert np.isnan(running_median(np.full(3, np.nan))).all()


REPORT = (
    "default_hooks['report'] = dict(type='swinv2_mm.ReportHook')\n"
    "default_hooks['logger'] = dict(type='LoggerHook', interval=1)\n"
)


def test_training_draws_while_it_goes_and_a_failure_is_a_warning(own_process, tmp_path, monkeypatch):
    """Bug: a picture only when all is over, or a training of days that dies of one."""
    drawn = []

    def draw_once(runs, out):
        drawn.append((len(runs[0].val), out))
        if len(drawn) > 1:
            raise MemoryError('no room')

    monkeypatch.setattr(report, 'draw_report', draw_once)
    cfg = prepare_training(write_config(tmp_path, extra=REPORT))
    runner = train(cfg)
    assert drawn[0][0] == 1 and drawn[-1][0] == 3
    assert runner.epoch == 3 and {out.name for _, out in drawn} == {'report.png'}
    (text,) = [path.read_text() for path in (tmp_path / 'work_dirs').rglob('*.log')]
    assert 'report.png was not drawn: MemoryError: no room' in text


@pytest.mark.parametrize(
    ('arguments', 'hint'),
    [
        ([], 'work_dir'),
        (['gone'], 'gone holds no log of a training: it does not exist'),
        (['.'], 'name a work dir'),
        (['run', 'run'], '--out is missing'),
        (['run', 'curves.png'], '--out is missing'),
        (['run', '--out', 'picture.txt'], '.svg'),
        (['run', '--out', 'run'], 'name a picture'),
        (['run', '--out', 'run/20260101_000000/vis_data/scalars.json/a.png'], 'cannot be written'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_wrong_arguments_of_plot_run_end_in_one_message(arguments, hint, run_tool, tmp_path, capsys):
    """Bug: an empty picture, a traceback, or a picture written over something else."""
    log(tmp_path / 'run', '20260101_000000', steps(10, 31))
    before = sorted(tmp_path.rglob('*'))
    assert run_tool('plot_run', *arguments) == 2
    assert hint in capsys.readouterr().err
    assert sorted(tmp_path.rglob('*')) == before


def test_the_tool_compares_runs_of_the_same_name(run_tool, tmp_path):
    """Bug: two curves of one name."""
    for folder in ('a', 'b'):
        log(tmp_path / folder / 'run', '20260101_000000', steps(10, 31))
    assert run_tool('plot_run', 'a/run') == 0 and (tmp_path / 'a/run/report.png').read_bytes().startswith(PNG)
    with rc_context({'svg.fonttype': 'none'}):
        assert run_tool('plot_run', 'a/run', 'b/run', '--out', 'both.svg') == 0
    picture = (tmp_path / 'both.svg').read_text()
    assert '>a/run<' in picture and '>b/run<' in picture
