"""A resumed run follows the schedule of its config, also where the checkpoint was trained with another one."""

import logging
from copy import deepcopy
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict, PolyLR
from support.tiny_training import write_config

from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.changed_schedule import ChangedScheduleHook
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
EPOCH = 4  # iterations
PLAIN = """
val_cfg = val_dataloader = val_evaluator = None
default_hooks['checkpoint'] = dict(type='CheckpointHook', by_epoch={by_epoch}, interval={interval})
"""
WARM = "dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)"
POLY = "[dict(type='PolyLR', power=0.9, eta_min=1e-4, end={n})]"
# Each for a number of epochs n, or of iterations.
SCHEDULES = {
    'cosine to the end of the run, by iteration': (
        f"[{WARM}, dict(type='CosineAnnealingLR', begin=1, convert_to_iter_based=True)]"
    ),
    'warm-up and milestones': f"[{WARM}, dict(type='MultiStepLR', milestones=[{{n}} // 2, {{n}} - 1], by_epoch=True)]",
    'momentum': (
        "[dict(type='CosineAnnealingMomentum', end={n}), dict(type='StepLR', step_size={n} // 2, gamma=0.3, end={n})]"
    ),
}
RUNS = count()
OPTIMIZER = """
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr={lr}, weight_decay={decay}), clip_grad=dict(max_norm=1.0),
    constructor='swinv2_mm.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(decay_rate=0.5))
"""


def run(tmp_path, name, n, schedule, resume=None, lr=1e-2, decay=0.05, by_epoch=True, batch_size=2, extra=''):
    """Train n epochs, or as many iterations."""
    loop = f'dict(by_epoch=True, max_epochs={n})' if by_epoch else f'dict(by_epoch=False, max_iters={n * EPOCH})'
    extra = (
        PLAIN.format(by_epoch=by_epoch, interval=1 if by_epoch else EPOCH)
        + OPTIMIZER.format(lr=lr, decay=decay)
        + (f'param_scheduler = {schedule.format(n=n)}\n{extra}')
    )
    settings = dict(noise=False, by_epoch=by_epoch, train_cfg=loop, batch_size=batch_size, extra=extra)
    if not by_epoch:
        settings['sampler'] = 'InfiniteSampler'
    # mmengine names loggers by the config and the second: two of one name would share them.
    config = write_config(tmp_path, f'{name}_{next(RUNS)}.py', **settings)
    return train(prepare_training(config, work_dir=str(tmp_path / name), resume=resume and str(tmp_path / resume)))


def rates(runner, begin=2 * EPOCH):
    """The learning rates of the heads and of nobody, which mmengine logs, from an iteration on."""
    hub = runner.message_hub
    return [hub.get_scalar(f'train/{name}').data[0][begin:].tolist() for name in ('lr', 'base_lr')]


def values(runner):
    """What the optimizer has for each group, and the state of each scheduler."""
    groups = runner.optim_wrapper.param_groups
    groups = [{name: value for name, value in group.items() if name != 'params'} for group in groups]
    states = [scheduler.state_dict() for scheduler in runner.param_schedulers]
    return groups, [{name: value for name, value in state.items() if not callable(value)} for state in states]


def told(folder):
    """Lines about a schedule in the log of the last run in a folder."""
    log = sorted(folder.rglob('*.log'))[-1].read_text()
    return [line for line in log.splitlines() if 'another schedule' in line]


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_a_longer_schedule_goes_on_as_if_it_had_been_there_from_the_start(schedule, tmp_path):
    """Bug: mmengine loads the end, T_max and milestones of the checkpoint, and trains the new epochs at a rate of 0."""
    straight = run(tmp_path, 'straight', 4, SCHEDULES[schedule], lr=3e-3)
    run(tmp_path, 'short', 2, SCHEDULES[schedule])
    resumed = run(tmp_path, 'resumed', 4, SCHEDULES[schedule], 'short/epoch_2.pth', lr=3e-3)
    assert rates(resumed) == rates(straight)
    assert values(resumed) == values(straight)
    assert len(told(tmp_path / 'resumed')) == 1


def test_the_same_by_iteration(tmp_path):
    """Bug: a run that counts no epochs replays none of its iterations, or by_epoch schedules of an earlier run."""
    schedule = f"[{WARM}, dict(type='PolyLR', begin=6, by_epoch=False)]"
    straight = run(tmp_path, 'straight', 4, schedule, by_epoch=False)
    run(tmp_path, 'short', 2, schedule, by_epoch=False)
    resumed = run(tmp_path, 'resumed', 4, schedule, 'short/iter_8.pth', by_epoch=False)
    assert rates(resumed) == rates(straight)
    assert values(resumed) == values(straight)


def test_other_iterations_per_epoch_count_as_the_config_has_them(tmp_path):
    """Bug: on twice as many GPUs, a schedule by iterations is past its end in the middle, or lr not scaled."""
    scaled = 'auto_scale_lr = dict(enable=True, base_batch_size=2)'
    schedule = "[dict(type='CosineAnnealingLR', by_epoch=False, end=8)]"  # 4 epochs of 2 iterations
    straight = run(tmp_path, 'straight', 4, schedule, batch_size=4, extra=scaled)
    run(tmp_path, 'short', 2, schedule, extra=scaled)
    resumed = run(tmp_path, 'resumed', 4, schedule, 'short/epoch_2.pth', batch_size=4, extra=scaled)
    assert rates(resumed) == rates(straight, 2 * 2)
    assert len(told(tmp_path / 'resumed')) == 1
    run(tmp_path, 'again', 4, schedule, 'resumed/epoch_3.pth', batch_size=4, extra=scaled)
    assert not told(tmp_path / 'again')


def test_a_schedule_that_is_gone_leaves_the_rate_of_the_config(tmp_path):
    """Bug: without the schedule that had reduced it, the rate stays reduced."""
    run(tmp_path, 'short', 2, POLY)
    resumed = run(tmp_path, 'resumed', 4, 'None', 'short/epoch_2.pth', lr=4e-3, decay=0.1)
    assert set(rates(resumed)[0]) == {4e-3}
    assert max(group['weight_decay'] for group in resumed.optim_wrapper.param_groups[:-1]) == 0.1
    assert len(told(tmp_path / 'resumed')) == 1


def test_weight_decay_follows_the_config(tmp_path):
    """Bug: mmengine loads it with the state of the optimizer, whatever the config says."""
    run(tmp_path, 'short', 2, POLY)
    resumed = run(tmp_path, 'resumed', 3, POLY.replace('{n}', '2'), 'short/epoch_2.pth', decay=0.2)
    (line,) = told(tmp_path / 'resumed')
    assert 'weight_decay=0.05, now 0.2' in line
    assert max(group['weight_decay'] for group in resumed.optim_wrapper.param_groups[:-1]) == 0.2


def test_how_the_optimizer_computes_is_up_to_this_run(tmp_path):
    """Bug: fused=True of one machine ends in an error on another: with sharded weights, or an older torch."""
    run(tmp_path, 'short', 2, POLY)
    extra = "optim_wrapper['optimizer']['fused'] = False\n"
    resumed = run(tmp_path, 'resumed', 3, POLY, 'short/epoch_2.pth', extra=extra)
    assert {group['fused'] for group in resumed.optim_wrapper.optimizer.param_groups} <= {None, False}


def test_an_unchanged_schedule_is_loaded_as_it_was_saved(tmp_path):
    """Bug: rates and weight decay that a hook of the user's has edited are set back, or a line about no change."""
    run(tmp_path, 'short', 3, POLY)
    path = tmp_path / 'short' / 'epoch_2.pth'
    checkpoint = torch.load(path, weights_only=True)
    for group in checkpoint['optimizer']['param_groups']:
        group['weight_decay'] = 0.01
    torch.save(checkpoint, path)
    resumed = run(tmp_path, 'resumed', 3, POLY, 'short/epoch_2.pth')
    assert not told(tmp_path / 'resumed')
    assert {group['weight_decay'] for group in resumed.optim_wrapper.optimizer.param_groups} == {0.01}


def test_what_a_plateau_has_reduced_is_kept(tmp_path):
    """Bug: reductions, which depend on metrics, are lost where another part of the schedule changes."""
    plateau = "dict(type='ReduceOnPlateauLR', monitor='error', patience=1, factor=0.5)"
    run(tmp_path, 'short', 2, f'[{plateau}]')
    path = tmp_path / 'short' / 'epoch_2.pth'
    checkpoint = torch.load(path, weights_only=True)
    for group in [*checkpoint['optimizer']['param_groups'], checkpoint['optimizer']['base_param_settings']]:
        group['lr'] /= 8
    checkpoint['param_schedulers'][0].update(best=-1.0, num_bad_epochs=1)
    torch.save(checkpoint, path)
    resumed = run(tmp_path, 'resumed', 3, f'[{plateau.replace("0.5", "0.2")}]', 'short/epoch_2.pth', lr=2e-2)
    assert rates(resumed)[0] == [2e-2 / 8] * EPOCH
    scheduler = resumed.param_schedulers[0]
    assert (scheduler.best, scheduler.num_bad_epochs, scheduler.factor) == (-1.0, 1, 0.2)
    assert 'ReduceOnPlateauLR' in told(tmp_path / 'resumed')[0]


@pytest.mark.parametrize(
    'change',
    [
        "optim_wrapper['optimizer'] = dict(type='SGD', lr=0.1, momentum=0.9)",
        "for name in ('constructor', 'paramwise_cfg'): optim_wrapper.pop(name)",
    ],
)
def test_another_optimizer_is_an_error(change, tmp_path):
    """Bug: a KeyError in its first step, or a ValueError of torch's about groups."""
    run(tmp_path, 'short', 1, POLY)
    with pytest.raises(UserError, match='pass --cfg-options load_from='):
        run(tmp_path, 'resumed', 2, POLY, 'short/epoch_1.pth', extra=change)


def test_several_optimizers_go_on_as_they_were_saved(caplog):
    """Bug: the state of one optimizer's schedules in the place of another's, or silence."""
    wrapper = OptimWrapperDict(one=OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)))
    schedules = {'one': [PolyLR(wrapper['one'], end=4)]}
    saved = {'one': [dict(schedules['one'][0].state_dict(), end=2)]}
    runner = SimpleNamespace(
        cfg={'resume': True},
        optim_wrapper=wrapper,
        param_schedulers=schedules,
        logger=logging.getLogger('several'),
        _load_from='it.pth',
    )
    checkpoint = {'optimizer': wrapper.state_dict(), 'param_schedulers': saved}
    before = deepcopy(checkpoint)
    ChangedScheduleHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint == before
    assert 'several optimizers' in caplog.text
