"""A training that is told to end saves inside of an epoch, and, resumed there, ends like an undisturbed one."""

import random
import re
import signal

import pytest
from support import ROOT, run_process, tiny_simmim
from support.resuming import check_same, left_in
from support.tiny_training import write_config

from swinv2_mm.datasets import ShapesSpec, write_shapes
from swinv2_mm.engine.runs.command_line import REQUEUE
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint

USR1, TERM = signal.SIGUSR1, signal.SIGTERM
FEW = "default_hooks['checkpoint'].update(max_keep_ckpts=1)\n"
EMA = "custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n"
SELDOM = "default_hooks['checkpoint'].update(interval=2)\n"
ACCUMULATE = 'optim_wrapper.update(accumulative_counts=4)\n'
BY_ITERATION = {
    'by_epoch': False,
    'sampler': 'InfiniteSampler',
    'train_cfg': 'dict(by_epoch=False, max_iters=9, val_interval=3)',
}
RUNS = {
    'main process': {'extra': FEW + EMA},
    'seldom saved': {'extra': SELDOM + EMA},
    'workers': {'num_workers': 2},
    'persistent workers': {'num_workers': 2, 'persistent_workers': True, 'extra': FEW},
    'iterations': {**BY_ITERATION, 'num_workers': 2, 'extra': FEW + EMA},
    'iterations seldom saved': {**BY_ITERATION, 'extra': SELDOM},
    'passes': {**BY_ITERATION, 'sampler': 'DefaultSampler'},
    'accumulation': {'batch_size': 1, 'extra': ACCUMULATE},
}


def place(work_dir):
    """Where a resumed run goes on: epoch and iteration."""
    checkpoint = latest_checkpoint(work_dir)
    meta = read_checkpoint(checkpoint)['meta'] if checkpoint else {'epoch': 0, 'iter': 0}
    return meta['epoch'], meta['iter']


def tell_and_resume(server, folder, name, moments, number=USR1, processes=1, length=4, write=write_config, **settings):
    """Send a signal to a run at random moments, and another to the run that goes on after it; resume that and compare.

    More moments follow until a run went on inside of an epoch, of ``length`` iterations.

    Returns:
        The places that the runs went on from.
    """
    write(folder, 'tiny.py', **settings)
    codes, output, _ = server.train(folder, 'straight', 'tiny.py', processes=processes)
    assert codes == [0] * processes, output
    straight, events = left_in(folder / 'straight'), int((folder / 'events_0').read_text())
    chance, places = random.Random(name), []
    for count, at in enumerate(chance.sample(range(2, events * 3 // 4), 3 * moments)):
        if count >= moments and any(iteration % length for _, iteration in places):
            break
        work_dir, rank, reached = f'told_at_{at}', chance.randrange(processes), []
        for moment in (at, chance.randrange(2, events // 2), None):
            codes, output, left = server.train(
                folder, work_dir, 'tiny.py', '--resume', processes=processes, at=moment, rank=rank, number=number
            )
            assert codes == [codes[0]] + [0] * (processes - 1) and codes[0] in (0, REQUEUE) and left == [], output
            if codes[0] == REQUEUE:
                assert f' by {number.name}' in output  # told to end, or, before the training began, stopped
                reached.append(place(folder / work_dir))
        assert codes[0] == 0
        check_same(straight, left_in(folder / work_dir), f'told in front of event {at}, {reached}')
        places += reached
    return places


@pytest.mark.parametrize('run', RUNS)
def test_a_run_told_to_end_at_any_moment_goes_on_to_the_same_end(run, fork_server, tmp_path):
    """Bug: the epoch begins again, samples are seen twice or not at all, other augmentation or drop path, a learning
    rate too early; a checkpoint that is left over, or missing; averages in the place of weights after a validation."""
    length = 8 if run == 'accumulation' else 4
    places = tell_and_resume(fork_server, tmp_path, run, 2, length=length, **RUNS[run])
    assert any(iteration % length for _, iteration in places), 'none was inside of an epoch'


@pytest.mark.parametrize(
    'settings', [{'num_workers': 2}, BY_ITERATION | {'num_workers': 1}], ids=['epochs', 'iterations']
)
def test_a_pre_training_goes_on_to_the_same_end(settings, fork_server, tmp_path):
    """Bug: other masks, or other crops."""
    own = {'train_cfg': 'dict(by_epoch=False, max_iters=9)'} if settings else {}  # nothing validates
    settings = {**settings, **own, 'num_workers': 1}
    places = tell_and_resume(fork_server, tmp_path, 'simmim', 2, write=tiny_simmim.write_config, **settings)
    assert {iteration for _, iteration in places} - {0}


FRAMEWORKS = {
    'maskrcnn': "train_dataloader = dict(batch_sampler=dict(type='AspectRatioBatchSampler'))\n",
    'upernet': '',
}


def write_small(folder, name, kind):
    """A small model of a framework, which trains for two epochs of four batches on the generated shapes."""
    size = 128 if kind == 'upernet' else 32  # its config pads smaller pictures, which mmseg's weighted loss refuses
    write_shapes(ShapesSpec(size=size, num_train=8, num_val=2), folder / 'shapes')
    loaders = ''.join(
        f"{split}_dataloader = dict(batch_size=2, num_workers=2, dataset=dict(data_root='shapes/'))\n"
        for split in ('train', 'val', 'test')
    )
    more = FRAMEWORKS[kind].replace('dict(', "dict(batch_size=2, num_workers=2, dataset=dict(data_root='shapes/'), ", 1)
    (folder / name).write_text(
        f"_base_ = '{ROOT}/configs/{kind}_swinv2_t_shapes.py'\n"
        f'model = dict(backbone=dict(depths=(1, 1, 1, 1), window_size=4, drop_path_rate=0.5))\n{loaders}{more}'
        'train_cfg = dict(max_epochs=2, val_interval=2)\ndefault_hooks = dict(report=None)\nrandomness = dict(seed=3)\n'
        + ("val_evaluator = dict(ann_file='shapes/annotations/instances_validation.json')\n" * (kind == 'maskrcnn'))
    )


@pytest.mark.slow
@pytest.mark.parametrize('kind', FRAMEWORKS)
def test_detectors_and_segmentors_go_on_to_the_same_end(kind, fork_server, tmp_path):
    """Bug: what a framework draws (samples of proposals, crops, flips), or how it groups pictures into batches, depends
    on what was loaded before."""
    places = tell_and_resume(fork_server, tmp_path, kind, 2, write=write_small, kind=kind)
    assert any(iteration % 4 for _, iteration in places), 'none was inside of an epoch'


def test_another_number_of_processes_goes_on_at_the_same_part(fork_server, tmp_path):
    """Bug: a number of batches that means other samples is taken as it is, or the epoch begins again."""
    write_config(tmp_path, batch_size=1, extra=tell(5, USR1))
    codes, output, _ = fork_server.train(tmp_path, 'run', 'tiny.py', processes=2)
    assert codes == [REQUEUE, 0] and '3 of 4 of epoch 2' in output, output
    codes, output, _ = fork_server.train(tmp_path, 'run', 'tiny.py', '--resume')
    assert codes == [0] and 'With 8 batches on 1 this run goes on behind 6' in output, output
    done = read_checkpoint(tmp_path / 'run' / 'epoch_3.pth')
    assert done['meta']['iter'] == 7 + 2 + 8


def test_two_processes_end_after_the_same_iteration(fork_server, tmp_path):
    """Bug: the process that got the signal saves while the other trains on, and both wait for ever; or one ends before
    the checkpoint is complete."""
    settings = RUNS['main process'] | {'batch_size': 1}
    places = tell_and_resume(fork_server, tmp_path, 'two', 2, processes=2, **settings)
    assert any(iteration % 4 for _, iteration in places), 'none was inside of an epoch'


@pytest.mark.slow
@pytest.mark.parametrize('run', ['workers', 'iterations', 'passes', 'zero1', 'fsdp2'])
def test_two_processes_go_on_to_the_same_end(run, fork_server, tmp_path):
    """As above. Bug: a process that saves alone where all hold a part of the state."""
    piece = ROOT / 'configs' / '_base_' / 'sharding' / f'{run}.py'
    settings = {'extra': EMA + piece.read_text()} if piece.exists() else RUNS[run]
    tell_and_resume(fork_server, tmp_path, run, 3, processes=2, **(settings | {'batch_size': 1}))


def tell(iteration, number, **arguments):
    """A line of a config."""
    options = ', '.join(f'{name}={value}' for name, value in arguments.items())
    return f"custom_hooks.append(dict(type='TellHook', iteration={iteration}, number={int(number)}, {options}))\n"


@pytest.mark.parametrize(('number', 'code'), [(USR1, REQUEUE), (TERM, 128 + TERM)])
def test_a_second_signal_ends_the_run_at_once(number, code, fork_server, tmp_path):
    """Bug: a run that takes long to save, or hangs, cannot be ended but by SIGKILL. The code of SIGUSR1 stays."""
    write_config(tmp_path, extra=tell(6, number, seconds=2.5))
    codes, output, _ = fork_server.train(tmp_path, 'run', 'tiny.py')
    assert codes == [code] and f'stopped by {number.name}. --resume goes on from run/epoch_1.pth.' in output


def test_a_signal_that_comes_twice_at_once_is_one(fork_server, tmp_path):
    """Bug: Slurm sends SIGTERM to all processes, torchrun to its own, and a run that both start ends without saving."""
    write_config(tmp_path, extra=tell(6, TERM, seconds=0.1))
    codes, output, _ = fork_server.train(tmp_path, 'run', 'tiny.py')
    assert codes == [REQUEUE] and 'of epoch 2. --resume goes on from ' in output and 'run/iter_7.pth' in output


@pytest.mark.parametrize('number', [USR1, TERM])
def test_data_workers_outlive_a_signal_to_the_group(number, fork_server, tmp_path):
    """Bug: the signal kills the data workers, too, and the iteration ends in an error."""
    write_config(tmp_path, extra=tell(5, number, group=True), num_workers=2, persistent_workers=True)
    codes, output, left = fork_server.train(tmp_path, 'run', 'tiny.py')
    assert codes == [REQUEUE] and left == [] and 'run/iter_6.pth' in output, output


@pytest.mark.parametrize('number', [USR1, pytest.param(TERM, marks=pytest.mark.slow)])
def test_dist_train_ends_with_the_code(number, fork_server, tmp_path):
    """Bug: torchrun dies of SIGUSR1 and leaves its processes, or returns 1 for any code; it kills a run that saves for
    longer than 30 seconds after SIGTERM; and it restarts what was told to end. Or the second process looks for what
    the first has not written yet."""
    write_config(tmp_path, 'straight.py', batch_size=1)
    write_config(tmp_path, 'tiny.py', batch_size=1, extra=tell(1, number, levels=2))
    command = ['bash', ROOT / 'tools' / 'dist_train.sh', 'tiny.py', '2', '--work-dir', 'run', '--max-restarts', '2']
    told = run_process(*command, cwd=tmp_path)
    assert told.returncode == REQUEUE, told.stderr
    assert len(re.findall(f'told to end by {number.name} after iteration [2-9]', told.stderr)) == 1, told.stderr
    assert 'Traceback' not in told.stderr
    for config, work_dir in (('tiny.py', 'run'), ('straight.py', 'straight')):
        codes, output, _ = fork_server.train(tmp_path, work_dir, config, '--resume', processes=2)
        assert codes == [0, 0], output
    straight, resumed = left_in(tmp_path / 'straight'), left_in(tmp_path / 'run')
    straight.pop('straight.py'), resumed.pop('tiny.py')
    check_same(straight, resumed, 'by dist_train.sh')


def test_a_run_ends_when_its_time_is_up(fork_server, tmp_path):
    """Bug: a limit that is read as minutes, counted from each epoch, or taken up by the run that goes on."""
    slow = "custom_hooks.append(dict(type='SlowHook', seconds=0.5))\n"
    write_config(tmp_path, 'straight.py')
    write_config(tmp_path, 'tiny.py', extra=slow)
    codes, output, _ = fork_server.train(tmp_path, 'run', 'tiny.py', '--max-time', '0:00:02')
    assert codes == [REQUEUE] and 'told to end by --max-time after iteration ' in output, output
    assert 1 <= place(tmp_path / 'run')[1] <= 5
    for config, work_dir in (('tiny.py', 'run'), ('straight.py', 'straight')):
        codes, output, _ = fork_server.train(tmp_path, work_dir, config, '--resume', '--max-time', '1-00:00:00')
        assert codes == [0], output
    straight, resumed = left_in(tmp_path / 'straight'), left_in(tmp_path / 'run')
    straight.pop('straight.py'), resumed.pop('tiny.py')
    check_same(straight, resumed, 'by --max-time')
