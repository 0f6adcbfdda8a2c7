"""A loss that is not finite stops training in front of the update, says where it began, and can be repeated."""

import re
from pathlib import Path

import pytest
from poisoned_training import EXTRA
from tiny_training import write_config

from swinv2_mm.engine.checkpoint_io import read_checkpoint
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.step_dump import read_step
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
VARIANTS = {
    'plain': ('', None),
    'bf16': ('', 'bf16'),
    'no clipping': ("optim_wrapper.pop('clip_grad')\n", None),
    'averaged': ("custom_hooks.append(dict(type='EMAHook', momentum=0.5))\n", None),
    'accumulated': ("optim_wrapper['accumulative_counts'] = 2\n", None),
    'iterations': ("", None),
}


def poisoned(tmp_path, poison, extra='', **settings):
    return write_config(tmp_path, 'poisoned.py', EXTRA.format(poison=poison) + extra, **settings)


def stopped(config, **arguments):
    with pytest.raises(UserError) as error:
        train(prepare_training(config, work_dir='run', **arguments))
    return str(error.value)


def finite(weights):
    """Running statistics aside: the forward pass of the step itself has updated them."""
    return all(tensor.isfinite().all() for name, tensor in weights.items() if 'running_' not in name)


@pytest.mark.parametrize('poison', ['forward', 'backward'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_stops_in_front_of_the_update_and_names_the_module(poison, variant, tmp_path, run_tool, capsys):
    """Bug: training goes on with weights of NaN and saves them; or the wrong module, batch or weights are told."""
    extra, amp = VARIANTS[variant]
    settings = {'by_epoch': False, 'train_cfg': 'dict(by_epoch=False, max_iters=8)'} if variant == 'iterations' else {}
    config = poisoned(tmp_path, poison, extra, **settings)
    assert run_tool('train', config, '--work-dir', 'run', *(['--amp', amp] if amp else [])) == 2
    said = capsys.readouterr().err
    error = said[said.index('error: '):]
    assert len(error.strip().splitlines()) == 1
    assert re.search(r'bad module is poison, which', error), error
    dump = re.search(r'replay_step\.py (\S+\.pth)\.', error)[1]
    step, weights, _ = read_step(dump)
    assert finite(weights) and '5.png' in [sample.img_path for sample in step.batch['sample']]
    assert step.where in error and '5.png' in error
    for checkpoint in map(read_checkpoint, Path('run').glob('[ei]*.pth')):
        assert all(tensor.isfinite().all() for tensor in checkpoint['state_dict'].values())
    found = error[error.index('The first bad module'):error.index(' The batch')]
    assert run_tool('replay_step', dump) == 0
    assert found in capsys.readouterr().out
