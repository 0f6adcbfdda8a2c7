"""A training that is killed at any moment and resumed ends like an undisturbed one, and leaves the same files."""

import errno
import itertools
import os
import random
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.visualization import LocalVisBackend
from support import ROOT, run_process
from support.resuming import check_same, left_in, same
from support.tiny_training import TinyError, write_config

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint

FEW = "default_hooks['checkpoint'].update(max_keep_ckpts=1)\n"
EMA = "custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n"
RUNS = {
    'main process': {'extra': FEW + EMA},
    'workers': {'num_workers': 2, 'persistent_workers': True},
    'iterations': {
        'num_workers': 1,
        'by_epoch': False,
        'sampler': 'InfiniteSampler',
        'extra': FEW,
        'train_cfg': 'dict(by_epoch=False, max_iters=6, val_interval=2)',
    },
}


def reached(work_dir):
    """The iteration that a resumed run goes on from."""
    checkpoint = latest_checkpoint(work_dir)
    return read_checkpoint(checkpoint)['meta']['iter'] if checkpoint else 0


def kill_and_resume(server, folder, name, kills, processes=1, **settings):
    """Kill a run at random moments, each time from the start, resume it, and compare."""
    write_config(folder, 'tiny.py', **settings)
    codes, output, _ = server.train(folder, 'straight', 'tiny.py', processes=processes)
    assert codes == [0] * processes, output
    straight = left_in(folder / 'straight')
    chance = random.Random(name)
    before = 0
    events = int((folder / 'events_0').read_text())
    for at in sorted(chance.sample(range(events), kills)):
        work_dir = f'killed_at_{at}'
        rank, moment = chance.randrange(processes), at
        if rank:
            moment = at * int((folder / f'events_{rank}').read_text()) // events
        codes, output, _ = server.train(folder, work_dir, 'tiny.py', processes=processes, at=moment, rank=rank)
        assert codes[rank] == -signal.SIGKILL, output
        if processes == 1:
            # What was reached once is never lost again, while checkpoints replace each other.
            assert before <= reached(folder / work_dir), f'killed in front of event {at}'
            before = reached(folder / work_dir)
        codes, output, _ = server.train(folder, work_dir, 'tiny.py', '--resume', processes=processes)
        assert codes == [0] * processes, output
        check_same(straight, left_in(folder / work_dir), f'killed in front of event {moment} of process {rank}')


@pytest.mark.parametrize(('run', 'kills'), [('main process', 10), ('workers', 5), ('iterations', 5)])
def test_a_run_killed_at_any_moment_resumes_to_the_same_end(run, kills, fork_server, tmp_path):
    """Bug: other weights; or a lost, a forgotten or a left-over checkpoint: the best one is not found if
    the validation after its checkpoint was interrupted, and the one before is deleted before it is replaced.
    """
    kill_and_resume(fork_server, tmp_path, run, kills, **RUNS[run])


@pytest.mark.parametrize('kills', [4, pytest.param(20, marks=pytest.mark.slow)])
def test_two_processes_killed_at_any_moment_resume_to_the_same_end(kills, fork_server, tmp_path):
    """Bug: as above; or processes that resume from different checkpoints."""
    kill_and_resume(fork_server, tmp_path, f'{kills} times', kills, processes=2, batch_size=1, **RUNS['main process'])


@pytest.mark.parametrize('workers', [0, 2])
def test_ctrl_c_stops_the_run_and_names_the_checkpoint(workers, fork_server, tmp_path):
    """Bug: a traceback of a hundred lines in place of where to go on, data workers that stay behind, exit code 1."""
    write_config(tmp_path, num_workers=workers, persistent_workers=workers > 0)
    fork_server.train(tmp_path, 'straight', 'tiny.py')
    at = int((tmp_path / 'events_0').read_text()) // 2
    codes, output, left = fork_server.train(tmp_path, 'run', 'tiny.py', at=at, number=signal.SIGINT)
    assert codes == [128 + signal.SIGINT] and left == []
    saved = latest_checkpoint(tmp_path / 'run')
    assert output.splitlines()[-1] == f'stopped by SIGINT. --resume goes on from run/{saved.name}.'
    assert 'Traceback' not in output


def test_one_of_several_processes_ends_at_once(fork_server, tmp_path):
    """Bug: a process that waits for another one is deaf to Python's handlers, and the launcher waits half a minute."""
    write_config(tmp_path)
    codes, output, _ = fork_server.train(tmp_path, 'run', 'tiny.py', processes=2, at=30, rank=1, number=signal.SIGINT)
    assert codes[1] == -signal.SIGINT, output


FULL = [('ENOSPC', 'Free space'), ('EDQUOT', 'Free space'), ('EROFS', 'writable')]


@pytest.mark.parametrize(('reason', 'hint'), FULL)
@pytest.mark.parametrize('victim', ['epoch_2.pth', 'best_error_epoch_2.pth'])
def test_a_full_disk_is_told_and_costs_nothing(reason, hint, victim, run_tool, tmp_path, trained, monkeypatch, capsys):
    """Bug: a traceback, half a checkpoint under the final name, or the former one removed to make room."""
    # Runs of one name, in one process and second, share mmengine's logs.
    config = write_config(tmp_path, f'{reason}_{victim}.py', extra=FEW)
    again = write_config(tmp_path, f'{reason}_{victim}_again.py', extra=FEW)
    write, former = Path.write_bytes, []

    def full(path, content):
        if path.name.startswith(f'.{victim}.'):
            write(path, content[:1000])
            former.extend(sorted(tmp_path.glob('run/*.pth')))
            raise OSError(getattr(errno, reason), reason)
        return write(path, content)

    monkeypatch.setattr(Path, 'write_bytes', full)
    falling = itertools.count(9, -1)  # so that each epoch is the best so far
    monkeypatch.setattr(TinyError, 'compute_metrics', lambda *_: {'error': np.float32(next(falling))})
    assert run_tool('train', config, '--work-dir', 'run') == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith('error: could not write ') and f'run/{victim}: ' in error
    assert hint in error and '--resume' in error
    assert re.search(r'It takes \d+\.\d\d MB', error)
    assert former == sorted(tmp_path.glob('run/*.pth')) and tmp_path / 'run/best_error_epoch_1.pth' in former
    assert not list(Path('run').glob('.*'))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run_tool('train', again, '--work-dir', 'run', '--resume') == 0
    straight, resumed = (torch.load(folder / 'epoch_3.pth')['state_dict'] for folder in (trained, Path('run')))
    assert same(straight, resumed)


def test_a_full_disk_is_told_while_logging(run_tool, tmp_path, monkeypatch, capsys):
    """Bug: the disk is full when a line is logged, long before the next checkpoint, and a traceback is all there is."""
    write_config(tmp_path, 'logs.py')

    def full(*_, **__):
        raise OSError(errno.ENOSPC, 'full')

    monkeypatch.setattr(LocalVisBackend, 'add_scalars', full)
    assert run_tool('train', 'logs.py', '--work-dir', 'run') == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith('error: could not write run: No space left')


@pytest.fixture
def restarted(monkeypatch):
    """Be a process that torchrun has started again."""

    def restart(run):
        monkeypatch.setenv('TORCHELASTIC_RUN_ID', run)
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')

    return restart


@pytest.mark.parametrize('asked', [None, 'auto', 'earlier'])
def test_restarted_processes_go_on_where_they_were(asked, restarted, own_process, tmp_path, trained, monkeypatch):
    """Bug: a restart begins again, or picks up the checkpoint of an earlier run that nobody asked for."""
    config = write_config(tmp_path)
    shutil.copytree(trained, 'run')  # of an earlier run
    earlier = asked if asked != 'earlier' else 'run/epoch_2.pth'
    restarted('this')
    cfg = prepare_training(config, work_dir='run', resume=earlier)
    # This run has saved nothing: what was asked for, as at the first start.
    expected = {None: None, 'auto': 'run/epoch_3.pth', 'earlier': 'run/epoch_2.pth'}[asked]
    assert (cfg.get('resume', False), cfg.get('load_from')) == (expected is not None, expected)
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    train(prepare_training(config, work_dir='run', cfg_options={'train_cfg.max_epochs': 1}))
    restarted('this')
    assert prepare_training(config, work_dir='run', resume=earlier).load_from == 'run/epoch_1.pth'
    restarted('none')  # torchrun was not told who this is
    assert prepare_training(config, work_dir='run').get('load_from') is None


def test_a_run_that_goes_on_elsewhere_removes_nothing_there(run_tool, tmp_path, trained):
    """Bug: the best checkpoint of the run that was resumed is removed from its folder when a better one is found."""
    write_config(tmp_path)
    shutil.copytree(trained, 'first')
    checkpoint = read_checkpoint('first/epoch_1.pth')
    information = checkpoint['message_hub']['runtime_info']
    information.update(best_score=1e9, best_ckpt=str(Path('first/best_error_epoch_1.pth').absolute()))
    Path('first/best_error_epoch_1.pth').touch()
    torch.save(checkpoint, 'first/changed.pth')
    os.replace('first/changed.pth', 'first/epoch_1.pth')  # what was read is mapped
    before = sorted(Path('first').iterdir())
    assert run_tool('train', 'tiny.py', '--work-dir', 'second', '--resume', 'first/epoch_1.pth') == 0
    assert sorted(Path('first').iterdir()) == before


@pytest.mark.slow
def test_torchrun_restarts_a_lost_process(tmp_path):
    """The whole of it, by dist_train.sh: a process is killed once, all are restarted, and end as if nothing was."""
    lost = "custom_hooks.append(dict(type='KillHook', iteration=6, rank=1))\n"
    write_config(tmp_path, batch_size=1, extra=lost)
    write_config(tmp_path, 'straight.py', batch_size=1)
    for config, options in (('tiny.py', ['--max-restarts', '1']), ('straight.py', [])):
        done = run_process('bash', ROOT / 'tools' / 'dist_train.sh', config, '2', *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    straight, restarted = (left_in(tmp_path / 'work_dirs' / name) for name in ('straight', 'tiny'))
    straight.pop('straight.py'), restarted.pop('tiny.py')
    check_same(straight, restarted, 'restarted')
