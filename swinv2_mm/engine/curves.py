"""A picture of a run, from the numbers that mmengine logs as JSON lines."""

import json
from pathlib import Path

from swinv2_mm.errors import UserError

_METRICS = ('coco/bbox_mAP', 'coco/segm_mAP', 'coco/bbox_mAP_50', 'mIoU', 'mAcc')


def read_scalars(work_dir: str | Path) -> tuple[list[dict], list[dict]]:
    """Read what a run, and its continuations by ``--resume``, logged.

    Returns:
        The records of training, by iteration, and those of validation, in the order of their steps. Of a step that
        was logged twice, because a run went on from an older checkpoint, the later record counts.

    Raises:
        UserError: The folder holds no such log.
    """
    train, val = {}, {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if 'iter' in record:
                train[record['iter']] = record
            elif any(name in record for name in _METRICS):
                val[record['step']] = record
    if not train:
        raise UserError(f'{work_dir} holds no log of a training; name a work dir, as in work_dirs/<config>.')
    return [train[key] for key in sorted(train)], [val[key] for key in sorted(val)]


def plot_run(work_dir: str | Path, out: str | Path) -> None:
    """Draw loss and learning rate by iteration, and the metrics by validation, into the picture ``out``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    train, val = read_scalars(work_dir)
    figure = Figure(figsize=(10, 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    iterations = [record['iter'] for record in train]
    for name in ['loss', *sorted(key for key in train[-1] if 'loss_' in key)]:
        left.plot(iterations, [record.get(name) for record in train], label=name, lw=2.2 if name == 'loss' else 1)
    left.set(xlabel='iteration', ylabel='loss', ylim=(0, None), title=Path(work_dir).resolve().name)
    left.legend(fontsize=7)
    rate = left.twinx()
    rate.plot(iterations, [record['lr'] for record in train], color='grey', ls=':')
    rate.set_ylabel('learning rate (dotted)', color='grey')
    for name in (name for name in _METRICS if val and name in val[-1]):
        right.plot([record['step'] for record in val], [record.get(name) for record in val], marker='o', label=name)
    right.set(xlabel='epoch', title='validation', ylim=(0, None))
    right.grid(alpha=0.3)
    if val:
        right.legend(fontsize=8)
    figure.savefig(out, dpi=110)
