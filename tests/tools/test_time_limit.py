"""A training that is told to end saves inside of an epoch, and, resumed there, ends like an undisturbed one."""

import random
import signal

import pytest
from support.resuming import check_same, left_in
from support.tiny_training import write_config

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


def tell_and_resume(server, folder, name, moments, number=USR1, processes=1, **settings):
    """Send a signal to a run at random moments, and another to the run that goes on after it; resume that and compare.

    Returns:
        The places that the runs went on from.
    """
    write_config(folder, 'tiny.py', **settings)
    codes, output, _ = server.train(folder, 'straight', 'tiny.py', processes=processes)
    assert codes == [0] * processes, output
    straight, events = left_in(folder / 'straight'), int((folder / 'events_0').read_text())
    chance, places = random.Random(name), []
    for at in sorted(chance.sample(range(2, events * 3 // 4), moments)):
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
    places = tell_and_resume(fork_server, tmp_path, run, 3, **RUNS[run])
    if run not in ('passes', 'iterations', 'iterations seldom saved'):
        length = 8 if run == 'accumulation' else 4
        assert any(iteration % length for _, iteration in places), 'none was inside of an epoch'
