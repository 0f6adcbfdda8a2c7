"""The picture of a run shows what was logged."""

import json

import pytest

from swinv2_mm.engine.curves import plot_run, read_scalars
from swinv2_mm.errors import UserError


def log(folder, name, records):
    path = folder / name / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text('\n'.join(map(json.dumps, records)))


def test_a_resumed_run_is_one_curve(tmp_path):
    """Iterations repeated after a resume appear once, as computed last. Prevents: curves that jump back."""
    log(tmp_path, '20260101_000000', [dict(iter=i, loss=9.0, lr=1e-3) for i in (10, 20, 30)] + [dict(mIoU=5, step=1)])
    log(tmp_path, '20260102_000000', [dict(iter=i, loss=1.0, lr=1e-3) for i in (20, 40)] + [dict(mIoU=7, step=1)])
    train, val = read_scalars(tmp_path)
    assert [(r['iter'], r['loss']) for r in train] == [(10, 9.0), (20, 1.0), (30, 9.0), (40, 1.0)]
    assert [(r['step'], r['mIoU']) for r in val] == [(1, 7)]
    plot_run(tmp_path, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_a_folder_without_a_run_is_named(tmp_path):
    """Prevents: an empty picture, or a traceback."""
    with pytest.raises(UserError, match='holds no log'):
        plot_run(tmp_path, tmp_path / 'curves.png')
    assert not (tmp_path / 'curves.png').exists()
