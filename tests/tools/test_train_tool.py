"""tools/train.py: mistakes end in one paragraph before anything is written; an interrupted run ends like another."""

import shutil
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner import EpochBasedTrainLoop
from support.tiny_training import write_config

from swinv2_mm.engine.recipe import precision
from swinv2_mm.engine.saving.reading import read_checkpoint


class RunsCode:
    """Pickles as a call that leaves a file behind."""

    def __reduce__(self):
        return open, ('code ran', 'w')


def everything_in(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob('*')}


@pytest.fixture
def refuse(run_tool, tmp_path, capsys):
    """Call the tool with a mistake; returns what it says, after checking how it says it."""

    def call(name, *arguments):
        before = everything_in(tmp_path)
        code = run_tool(name, *arguments)
        out, err = capsys.readouterr()
        assert (code, out) == (2, '')
        assert everything_in(tmp_path) == before
        errors = [line for line in err.splitlines() if not line.startswith('warning: ')]
        assert len(errors) == 1 and errors[0].startswith('error: '), err
        return errors[0]

    return call


@pytest.mark.parametrize(
    ('arguments', 'hint'),
    [
        ([], 'config'),
        (['tiny.py', '--bogus'], '--bogus'),
        (['tiny.py', '--launcher', 'bogus'], 'slurm'),
        (['tiny.py', '--amp', 'fp8'], 'fp8'),
        (['tiny.py', '--amp=fp8'], 'fp16'),
        (['tinny.py'], 'Did you mean tiny.py?'),
        (['nowhere/tiny.py'], 'folder nowhere'),
        (['broken.py'], 'broken.py, line 1'),
        (['tiny.py', '--cfg-options', 'train_cfg.max_epochs'], 'expected key=value'),
        (['tiny.py', '--cfg-options', 'a=[(1,2]'], 'brackets'),
        (['tiny.py', '--cfg-options', 'modle.noise=False'], 'Did you mean model?'),
        (['tiny.py', '--cfg-options', 'train_cfg=None'], 'train_cfg'),
        (['tiny.py', '--cfg-options', 'train_dataloader.dataset.data_root=gone'], 'gone'),
        (['tiny.py', '--cfg-options', 'val_dataloader.dataset.ann_file=gone.json'], 'gone.json'),
        (['tiny.py', '--cfg-options', 'load_from=gone.pth'], 'load_from: checkpoint gone.pth does not exist'),
        (['tiny.py', '--cfg-options', 'load_from=page.pth'], 'page.pth is no checkpoint'),
        (['tiny.py', '--cfg-options', 'load_from=evil.pth'], 'refused'),
        (['tiny.py', '--cfg-options', 'model.init_cfg.type=Pretrained'], 'model.init_cfg'),
        (
            ['tiny.py', '--cfg-options', 'model.init_cfg.type=Pretrained', 'model.init_cfg.checkpoint=evil.pth'],
            'refused',
        ),
        (['tiny.py', '--resume', 'gone.pth'], '--resume: checkpoint gone.pth does not exist'),
        (['tiny.py', '--resume', 'evil.pth'], 'refused'),
        (['tiny.py', '--resume', 'weights.pth'], 'load_from=weights.pth'),
        (['tiny.py', '--work-dir', 'tiny.py'], 'tiny.py is a file'),
        (['tiny.py', '--auto-scale-lr', '--cfg-options', 'auto_scale_lr=None'], 'auto_scale_lr.base_batch_size'),
        (['tiny.py', '--launcher', 'pytorch'], 'RANK'),
        (['tiny.py', '--launcher', 'slurm'], 'SLURM_PROCID'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_a_mistake_is_named_before_anything_is_written(arguments, hint, refuse, tmp_path):
    """Bug: a traceback, or a work dir full of logs, in place of the reason and the remedy."""
    write_config(tmp_path)
    Path('broken.py').write_text('model = dict(\n')
    Path('page.pth').write_text('<html>')
    torch.save({'state_dict': RunsCode()}, 'evil.pth')
    torch.save({'state_dict': {}}, 'weights.pth')
    assert hint in refuse('train', *arguments)


@pytest.mark.parametrize(
    ('arguments', 'hint'),
    [
        (['tiny.py'], 'checkpoint'),
        (['tiny.py', 'gone.pth'], 'checkpoint gone.pth does not exist'),
        (['tiny.py', 'evil.pth'], 'refused'),
        (['tiny.py', 'weights.pth', '--out', 'predictions'], '.pkl'),
        (['tiny.py', 'weights.pth', '--show-dir', 'pictures'], 'default_scope'),
        (['tiny.py', 'weights.pth', '--tta'], 'tta_pipeline'),
        (['tiny.py', 'weights.pth', '--cfg-options', 'test_dataloader.dataset.data_root=gone'], 'gone'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_the_test_tool_names_a_mistake_before_anything_is_written(arguments, hint, refuse, tmp_path):
    write_config(tmp_path)
    torch.save({'state_dict': RunsCode()}, 'evil.pth')
    torch.save({'state_dict': {}}, 'weights.pth')
    assert hint in refuse('test', *arguments)


def test_a_bug_keeps_its_traceback(run_tool, tmp_path, monkeypatch):
    """Bug: every exception is turned into a short message, and programming errors cannot be found."""
    write_config(tmp_path)
    monkeypatch.setattr('swinv2_mm.models.swin_v2.PatchEmbed', None)
    with pytest.raises(TypeError, match='NoneType'):
        run_tool('train', 'tiny.py')


def test_an_unknown_best_metric_is_refused_with_a_list_of_the_metrics(run_tool, tmp_path, capsys):
    """Only a validation tells which there are. Bug: a KeyError after the first epoch, which may have taken hours."""
    write_config(tmp_path)
    assert run_tool('train', 'tiny.py', '--cfg-options', 'default_hooks.checkpoint.save_best=bogus') == 2
    assert "save_best='bogus' is none of the metrics error." in capsys.readouterr().err
    assert Path('work_dirs/tiny/epoch_1.pth').exists()


def test_trains_from_any_folder(run_tool, tmp_path, monkeypatch, capsys):
    """The work dir is named after the config, and made where the command runs. One warning: nothing was loaded."""
    write_config(tmp_path)
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    messages = []
    monkeypatch.setattr(MMLogger, 'warning', lambda self, text, *_, **__: messages.append(text))
    assert run_tool('train', '../tiny.py', '--cfg-options', 'train_cfg.max_epochs=1') == 0
    assert Path('work_dirs/tiny/epoch_1.pth').is_file()
    assert 'work_dirs/tiny' in capsys.readouterr().err
    noise = [text for text in messages if 'random weights' in str(text)]
    assert len(noise) == 1 and 'model.backbone.init_cfg' in noise[0] and '\n' not in noise[0]


def test_resume_without_a_checkpoint_starts_the_run(run_tool, tmp_path, trained, capsys, monkeypatch):
    """Bug: a job script that always passes --resume loses the weights that its config loads on the first start."""
    write_config(tmp_path)
    log = []
    monkeypatch.setattr(MMLogger, 'info', lambda self, text, *_, **__: log.append(str(text)))
    weights = str(trained / 'epoch_2.pth')
    assert run_tool('train', 'tiny.py', '--resume', '--cfg-options', f'load_from={weights}') == 0
    assert any(text == f'Load checkpoint from {weights}' for text in log)
    assert 'no checkpoint in work_dirs/tiny' in capsys.readouterr().err


def test_resuming_with_another_model_is_refused(run_tool, tmp_path, trained, capsys):
    """Bug: what fits is loaded, the rest stays random, and a warning of a hundred lines is all there is to see."""
    write_config(tmp_path, width=12)
    assert run_tool('train', 'tiny.py', '--resume', trained / 'epoch_1.pth') == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: ') and 'does not fit this config' in error and 'another shape' in error


def test_resuming_a_finished_run_changes_nothing(run_tool, tmp_path, trained):
    """Bug: a finished run is trained, validated or saved again."""
    write_config(tmp_path, 'done.py')
    shutil.copytree(trained, 'run')
    before = {path: path.read_bytes() for path in Path('run').glob('*.pth')}
    assert run_tool('train', 'done.py', '--work-dir', 'run', '--resume') == 0
    assert {path: path.read_bytes() for path in Path('run').glob('*.pth')} == before


@pytest.mark.parametrize(
    ('arguments', 'dtype'),
    [
        (['--amp', 'tiny.py'], torch.bfloat16),
        (['tiny.py', '--amp'], torch.bfloat16),
        (['--amp', 'fp16', 'tiny.py'], torch.float16),
        (['tiny.py', '--amp=float16', '--work-dir', 'run'], torch.float16),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_amp_takes_a_type_but_not_the_config(arguments, dtype, run_tool, tmp_path, monkeypatch):
    """Bug: ``--amp configs/x.py`` takes the config for a type, as argparse reads an optional value."""
    write_config(tmp_path)
    monkeypatch.setattr(precision, 'has_arithmetic', lambda dtype: True)
    found = []
    monkeypatch.setattr(EpochBasedTrainLoop, 'run', lambda loop: found.append(loop.runner.optim_wrapper.cast_dtype))
    assert run_tool('train', *arguments) == 0
    assert found == [dtype]


def test_averaged_weights_are_validated_saved_and_resumed(run_tool, tmp_path, capsys):
    """mmengine's EMAHook: what validation measures are the averages, which are what the checkpoint gives to a test; a
    resumed run ends in the averages of an uninterrupted one.

    Bug: validation with a position bias kept from other weights, or averages that start anew.
    """
    write_config(tmp_path, extra="custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n")
    write_config(tmp_path, 'plain.py')
    assert run_tool('train', 'tiny.py', '--work-dir', 'straight') == 0
    assert run_tool('train', 'tiny.py', '--work-dir', 'resumed', '--resume', 'straight/epoch_1.pth') == 0
    straight, resumed = (read_checkpoint(f'{name}/epoch_3.pth') for name in ('straight', 'resumed'))
    for part in ('state_dict', 'ema_state_dict'):
        for key, value in straight[part].items():
            assert torch.equal(value, resumed[part][key]), key
    validated = (
        straight['message_hub']['log_scalars']['val/error'].data[0].tolist()[:2]
    )  # that of epoch 3 is in it if it was the best
    trained = {key.removeprefix('module.'): value for key, value in straight['ema_state_dict'].items()}
    trained.pop('steps')
    torch.save({'state_dict': trained}, 'trained.pth')  # mmengine swaps the two in a checkpoint
    errors = []
    for checkpoint in ('straight/epoch_1.pth', 'straight/epoch_2.pth', 'straight/epoch_3.pth', 'trained.pth'):
        capsys.readouterr()
        assert run_tool('test', 'plain.py', checkpoint) == 0
        errors.append(float(capsys.readouterr().out.split()[-1]))
    assert errors[:2] == pytest.approx(validated, abs=1e-4)
    assert abs(errors[3] - errors[2]) > 1e-3
