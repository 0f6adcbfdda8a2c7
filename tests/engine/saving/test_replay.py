"""Replayed schedules are where those of an uninterrupted run are."""

import warnings
from copy import deepcopy

import pytest
import torch
from mmengine.optim import ExponentialLR, OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from swinv2_mm.engine.saving.replay import replay

EPOCHS, LENGTH, REST = 8, 7, 3
WARM = dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=20)
CASES = {
    'warm-up and milestones': [WARM, dict(type='MultiStepLR', milestones=[3, 5, 5, 9])],
    'cosine beyond its end': [dict(type='CosineAnnealingLR', T_max=3, end=9)],
    'cosine by iteration': [dict(type='CosineAnnealingLR', eta_min_ratio=0.1, end=12, convert_to_iter_based=True)],
    'poly': [WARM, dict(type='PolyLR', begin=20, end=70, eta_min=1e-6, power=0.9, by_epoch=False)],
    'one cycle': [dict(type='OneCycleLR', eta_max=0.1, total_steps=100, end=100, by_epoch=False, three_phase=True)],
    'restarts': [dict(type='CosineRestartLR', periods=[3, 5, 4], restart_weights=[1, 0.5, 0.2], eta_min=1e-6)],
    'four at once': [
        dict(type='ExponentialLR', gamma=0.9, begin=2),
        dict(type='ConstantLR', factor=0.3, end=5),
        dict(type='StepLR', step_size=3),
        dict(type='CosineAnnealingMomentum', T_max=4),
    ],
    'of the frameworks': [
        dict(type='mmdet.QuadraticWarmupLR', end=5, convert_to_iter_based=True),
        dict(type='mmseg.PolyLRRatio', eta_min_ratio=0.1, power=0.9, begin=5, end=11),
    ],
}


def build(cases, groups=5):
    """An optimizer whose groups have different rates, and its schedulers."""
    groups = [{'params': [torch.nn.Parameter(torch.zeros(1))], 'lr': 1e-3 * 0.9**i, 'name': i} for i in range(groups)]
    wrapper = OptimWrapper(torch.optim.AdamW(groups, lr=1e-3, weight_decay=0))
    given = dict(optimizer=wrapper, epoch_length=LENGTH)
    return wrapper, [PARAM_SCHEDULERS.build(deepcopy(case), default_args=given) for case in cases]


def train_without_training(schedulers):
    """Step as ParamSchedulerHook does, after each iteration and each epoch."""
    for iteration in range(1, EPOCHS * LENGTH + REST + 1):
        for scheduler in schedulers:
            if not scheduler.by_epoch:
                scheduler.step()
        for scheduler in schedulers if iteration % LENGTH == 0 else ():
            if scheduler.by_epoch:
                scheduler.step()


def state(wrapper, schedulers):
    groups = [{name: value for name, value in group.items() if name != 'params'} for group in wrapper.param_groups]
    states = [{name: value for name, value in s.state_dict().items() if not callable(value)} for s in schedulers]
    return groups, states


@pytest.mark.parametrize('case', CASES)
def test_ends_in_the_state_of_an_uninterrupted_run(case):
    """Bug: another order of epochs and iterations, a value rounded elsewhere, or arrays left in groups and states."""
    if case == 'of the frameworks':
        pytest.importorskip('mmdet.engine.schedulers')
        pytest.importorskip('mmseg.engine.schedulers')
    straight, replayed = build(CASES[case]), build(CASES[case])
    before = state(*replayed)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        train_without_training(straight[1])
    replay(replayed[1], replayed[0].param_groups, EPOCHS, LENGTH, EPOCHS * LENGTH + REST)
    assert state(*replayed) == state(*straight) != before
    assert all(type(group['lr']) is float for group in replayed[0].param_groups)
    assert all(scheduler.optimizer is replayed[0] for scheduler in replayed[1])


class CappedLR(ExponentialLR):
    """Somebody's own, which computes with one number at a time."""

    def _get_value(self):
        return [min(group['lr'] * self.gamma, 1e-3) for group in self.optimizer.param_groups]


def test_a_scheduler_of_the_users_own_gets_numbers():
    """Bug: arrays for a class that has been written for numbers."""
    wrapper, _ = build([])
    scheduler = CappedLR(wrapper, gamma=1.1)
    replay([scheduler], wrapper.param_groups, 3, LENGTH, 3 * LENGTH)
    rates = [group['lr'] for group in wrapper.param_groups[:-1]]
    assert rates == pytest.approx([min(1e-3 * 0.9**i * 1.1**4, 1e-3) for i in range(5)])
