"""Pre-training by tools/train.py: checked before it starts, resumed to the same end, and what the tools say of it."""

import random
import re
import signal
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope
from support.resuming import same
from support.tiny_simmim import write_config
from support.versions import needs_compiler

from swinv2_mm import SimMIM
from swinv2_mm.engine.checks.model import build_model
from swinv2_mm.engine.checks.optimizer import build_optimizer
from swinv2_mm.engine.config import read_config
from swinv2_mm.engine.costs import build_on_meta, complexity
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint
from swinv2_mm.errors import UserError
from swinv2_mm.models.kernels.choose import has_arithmetic

pytestmark = pytest.mark.usefixtures('own_process')
UNDECAYED = re.compile(r'bias$|norm\d?\.weight$|cpb_mlp|logit_scale|mask_token')
RECORD = "custom_hooks.append(dict(type='RecordHook'))\n"
ITERATIONS = {'num_workers': 1, 'by_epoch': False, 'sampler': 'InfiniteSampler'}
DRAW = "custom_hooks.append(dict(type='swinv2_mm.ReconstructionHook'))\n"  # which masks and paints, too
RUNS = {
    'epochs': {'extra': DRAW + "custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n"},
    'iterations': {'extra': DRAW, 'train_cfg': 'dict(by_epoch=False, max_iters=6)', **ITERATIONS},
}


def last(work_dir):
    return read_checkpoint(latest_checkpoint(work_dir))


@pytest.mark.parametrize('run', RUNS)
def test_a_killed_run_resumes_to_the_same_end(run, fork_server, tmp_path):
    """Bit for bit, killed at three moments. Bug: masks, or dropped paths, that depend on how often a run has begun."""
    write_config(tmp_path, **RUNS[run])
    codes, output, _ = fork_server.train(tmp_path, 'straight', 'simmim.py')
    assert codes == [0], output
    expected = last(tmp_path / 'straight')
    events = int((tmp_path / 'events_0').read_text())
    for at in random.Random(run).sample(range(events // 3, events), 3):
        codes, output, _ = fork_server.train(tmp_path, f'killed_{at}', 'simmim.py', at=at)
        assert codes == [-signal.SIGKILL], output
        codes, output, _ = fork_server.train(tmp_path, f'killed_{at}', 'simmim.py', '--resume')
        assert codes == [0], output
        found = last(tmp_path / f'killed_{at}')
        for part in ('state_dict', 'ema_state_dict', 'optimizer'):
            assert same(found.get(part), expected.get(part)), (at, part)


def test_masks_follow_the_seed_of_the_epoch(tmp_path):
    """Others in each step; those of epoch 2 again after a resume; others for another seed. Bug: one mask for all
    epochs, or masks that the seed of the run does not choose."""
    train(prepare_training(write_config(tmp_path, 'one.py', RECORD), work_dir='one'))
    straight = Path('masks_0.txt').read_text().split()
    assert len({*straight}) == len(straight) == 12
    train(prepare_training(write_config(tmp_path, 'again.py', RECORD), work_dir='again', resume='one/epoch_1.pth'))
    assert Path('masks_0.txt').read_text().split() == straight[4:]
    other = RECORD + 'randomness.update(seed=8)\n'
    train(prepare_training(write_config(tmp_path, 'other.py', other), work_dir='other'))
    assert not {*straight} & {*Path('masks_0.txt').read_text().split()}


@pytest.mark.parametrize('amp', ['fp32', 'bf16'])
def test_it_learns(amp, tmp_path):
    """On images that never change. Bug: gradients that do not reach the backbone, or a loss that grows."""
    if amp == 'bf16' and not has_arithmetic(torch.bfloat16):
        pytest.skip('this processor only emulates bfloat16')
    settings = {
        'augment': False,
        'drop_path_rate': 0.0,
        'batch_size': 8,
        'by_epoch': False,
        'sampler': 'InfiniteSampler',
    }
    settings['train_cfg'] = 'dict(by_epoch=False, max_iters=40)'
    quiet = "default_hooks['checkpoint'].update(interval=40)\nmodel.update(norm_target=None)\n"
    runner = train(prepare_training(write_config(tmp_path, f'{amp}.py', quiet, **settings), work_dir=amp, amp=amp))
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert {parameter.dtype for parameter in runner.model.parameters()} == {torch.float32}
    moments = runner.optim_wrapper.optimizer.state
    assert all(moments[parameter]['exp_avg'].any() for parameter in runner.model.parameters())


@needs_compiler
def test_a_compiled_run_ends_in_the_same_weights(tmp_path):
    """Averages of them, too. Bug: a hidden token of the first step, kept in the graph."""
    settings = {'drop_path_rate': 0.0, 'train_cfg': 'dict(by_epoch=True, max_epochs=1)'}
    averaged = "custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n"
    hook = "custom_hooks.append(dict(type='swinv2_mm.CompileBackboneHook', backend='aot_eager'))\n"
    train(prepare_training(write_config(tmp_path, 'plain.py', averaged, **settings), work_dir='plain'))
    torch._dynamo.reset()
    config = write_config(tmp_path, 'compiled.py', averaged + hook, **settings)
    runner = train(prepare_training(config, work_dir='compiled', compile=True))
    assert runner.model.backbone._compiled_call_impl is not None
    torch._dynamo.reset()
    for part in ('state_dict', 'ema_state_dict'):
        found, expected = (last(name)[part] for name in ('compiled', 'plain'))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize('constructor', ['default', 'swinv2_mm.LayerDecayOptimWrapperConstructor'])
def test_no_weight_decay_for_the_token(constructor, tmp_path):
    """As in Microsoft's code, nor for norms and biases; every parameter is trained once. Bug: a token that shrinks."""
    cfg = read_config(str(write_config(tmp_path)))
    if constructor != 'default':
        cfg.optim_wrapper.pop('paramwise_cfg')  # or what it says of the token would stay
        cfg.optim_wrapper.update(constructor=constructor, paramwise_cfg=dict(decay_rate=0.9))
    init_default_scope('mmengine')
    model = build_model(cfg.model)
    groups = build_optimizer(cfg.optim_wrapper, model).optimizer.param_groups
    decays = {p: group['weight_decay'] for group in groups for p in group['params']}
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decays[parameter] == (0 if UNDECAYED.search(name) else 0.05), name


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model.mask_ratio': 1.5}, r'^model\.mask_ratio=1\.5|^model: mask_ratio=1\.5'),
        ({'model.mask_patch': 16}, r'^model.* mask_patch'),
        ({'model.backbone.window': 8}, r'^model\.backbone.* window'),
        (
            {'train_dataloader.dataset.crop_size': 36},
            r'mask_patch_size=8 does not .*36 x 36.*Crop them to 32 x 32',
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_written(change, message, tmp_path):
    """Bug: a traceback in the first step, behind an hour of waiting for machines."""
    config = write_config(tmp_path)
    with pytest.raises(UserError, match=message):
        prepare_training(str(config), work_dir='run', cfg_options=change)
    assert [path.name for path in tmp_path.iterdir()] == [config.name]


def test_nothing_warns_of_random_weights(tmp_path, capfd):
    """Bug: a pre-training is told to begin with pre-trained weights."""
    quick = {'train_cfg': 'dict(by_epoch=True, max_epochs=1)'}
    train(prepare_training(str(write_config(tmp_path, 'noise.py', **quick)), work_dir='run'))
    assert 'random weights' not in ''.join(capfd.readouterr())


@HOOKS.register_module()
class SpoilHook(Hook):
    """Make NaN of a parameter, or of an image, in front of the third iteration.

    Args:
        what: Name of the parameter, or ``'image'``.
    """

    def __init__(self, what):
        self.what = what

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 2 and self.what == 'image':
            data_batch['inputs'][1][:] = float('nan')
        elif runner.iter == 2:
            runner.model.get_parameter(self.what).data.view(-1)[0] = float('nan')


@pytest.mark.parametrize(
    ('what', 'said'),
    [
        ('mask_token', 'the model itself, which has a mask_token that is not finite'),
        ('decoder.weight', 'decoder, which puts out .* its own weight is not finite'),
        ('backbone.stages.1.blocks.0.mlp.fc1.weight', r'backbone\.stages\.1\.blocks\.0\.mlp\.fc1, which'),
        ('image', r'data_preprocessor, which puts out .* of inputs that are not finite'),
    ],
)
def test_nan_is_traced_to_its_module(what, said, tmp_path):
    """Bug: a parameter of no module below the model is blamed on the targets."""
    extra = f"custom_hooks.append(dict(type='SpoilHook', what='{what}'))\n"
    with pytest.raises(UserError, match=f'iteration 3 of 4: the .* is not finite.*bad module is {said}'):
        train(prepare_training(str(write_config(tmp_path, 'spoilt.py', extra)), work_dir='run'))


@pytest.mark.parametrize('channels', [3, 4])
def test_costs_are_those_that_run(channels, tmp_path):
    """Parameters by a real model; the decoder is the head. Bug: an image of three channels, or a mask that the empty
    backbone does not take."""
    cfg = read_config(str(write_config(tmp_path)), {'model.backbone.in_channels': channels})
    cost = complexity(build_on_meta(cfg.model, 'mmengine'), (64, 96))
    settings = {key: value for key, value in cfg.model.items() if key not in ('type', 'data_preprocessor')}
    model = SimMIM(**settings)
    assert cost.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert cost.backbone == sum(model.backbone.multiply_adds((64, 96)))
    assert cost.heads == 8 * 12 * 16 * 8**2 * channels  # of the last map, from 16 channels to a square of 8 pixels


def test_the_tools_count_and_print_it(run_tool, tmp_path, capsys):
    """At the size of the training, if the config tells it. Bug: tools that ask for a test pipeline."""
    config = write_config(tmp_path, extra="train_dataloader['dataset'].update(crop_size=(64, 96))\n")
    assert run_tool('model_zoo', config) == 0
    assert '64 x 96 pixels' in capsys.readouterr().out
    assert run_tool('print_param_groups', config) == 0
    assert 'mask_token' in capsys.readouterr().out
