"""Checkpoints of every config of the zoo are tested, resumed, converted and loaded with their own pretrained windows.

The pretrained window normalises the position bias. It belongs to the weights; no shape depends on it, and with a wrong
one a model silently computes something else. So each test compares features, bit by bit, with those of the trained
model.
"""

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from support.probe import Probe, features
from support.round_trips import CASES, WRONG, Run, flags, initialise, microsoft_file, resized, same, small
from support.tiny_data import write_data
from support.tiny_fixtures import put_back

from swinv2_mm.checkpoints.files import read_file
from swinv2_mm.checkpoints.windows import pairs, plain
from swinv2_mm.engine.runs import prepare_training, train


@pytest.fixture(scope='module', autouse=True)
def unformatted():
    """Configs are saved as they are: yapf, which mmengine calls five times a run, takes two thirds of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, False))
        yield


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('zoo'))


@pytest.fixture(scope='module')
def run(request, tmp_path_factory, data):
    """The training of a case, with nothing left of what it started from."""
    case, folder = request.param, tmp_path_factory.mktemp('run')
    cfg = small(case.stem, data)
    cfg.custom_hooks = [*cfg.get('custom_hooks', []), *case.hooks, {'type': 'Probe'}]
    backbone = cfg.model.backbone
    backbone.update(case.changes)
    options = {} if backbone.init_cfg is None else {'model.backbone.init_cfg': None}
    if case.pretrained:
        options, hub = {}, torch.hub._hub_dir
        torch.hub._hub_dir = str(folder / 'hub')
        fresh = MODELS.build(dict(backbone, init_cfg=None, pretrained_window_sizes=None))
        start = microsoft_file(fresh, case.pretrained, folder / 'imagenet.pth')
        backbone.init_cfg = {'type': 'swinv2_mm.Pretrained', 'checkpoint': str(start)}
        backbone.pretrained_window_sizes = None
    if case.hooks:  # the average is that of two steps
        cfg.train_cfg['max_epochs' if 'max_epochs' in cfg.train_cfg else 'max_iters'] = 2
    config = trained = folder / f'{case.stem}.py'
    cfg.dump(trained)
    if case.tested:
        other = small(case.tested, data)
        other.custom_hooks = cfg.custom_hooks
        other.model.backbone.window_size = 8  # another one than the training's
        config = folder / f'{case.tested}.py'
        other.dump(config)
    work_dir = folder / 'work_dir'
    with put_back():
        runner = train(prepare_training(str(trained), work_dir=str(work_dir), cfg_options=options))
    if case.pretrained:
        torch.hub._hub_dir = hub
        shutil.rmtree(folder / 'hub')
        start.unlink()
    model, checkpoint = runner.model, (work_dir / 'last_checkpoint').read_text()
    average = next((hook.ema_model.module for hook in runner.hooks if isinstance(hook, EMAHook)), model)
    result = Run(
        (config, work_dir / trained.name),
        bool(case.pretrained),
        trained,
        options,
        work_dir,
        checkpoint,
        torch.load(checkpoint)['state_dict'],
        model.backbone.pretrained_window_sizes,
        features(model.backbone),
        deepcopy(average.backbone).eval(),
    )
    if case.pretrained:
        assert result.windows == pairs(case.pretrained, 4)
    elif case.stem.endswith('_l') or '_l_' in case.stem:
        assert result.windows == pairs([12, 12, 12, 6], 4)
    else:
        assert plain(result.windows) in ([8] * 4, [12, 12, 12, 6], [4] * 4)  # the last: from scratch
    assert average is model or not same(features(average.backbone), result.noted)
    # Otherwise the comparisons of this module would see nothing.
    other = resized(result.saved, result.saved.window_size)
    for stage in other.stages:
        for block in stage.blocks:
            block.attn.pretrained_window_size = (WRONG, WRONG)
    assert not same(features(other), features(result.saved))
    return result


pytestmark = [pytest.mark.usefixtures('own_process'), pytest.mark.parametrize('run', CASES, indirect=True)]


def test_the_test_tool_computes_what_was_trained(run, run_tool):
    """tools/test.py computes with what was trained. Prevents: a checkpoint of a config of the zoo that is refused,
    since the tool guesses its pretrained window from the text of a config, or one tested with another normaliser.
    """
    for config in run.configs if run.untold else run.configs[:1]:
        Probe.seen.clear()
        assert run_tool('test', config, run.checkpoint, '--work-dir', 'test') == 0
        window_size = Config.fromfile(config).model.backbone.window_size
        [(windows, maps)] = Probe.seen
        assert windows == run.windows
        assert same(maps, run.features_at(pairs(window_size, 4)))


def test_resuming_keeps_weights_and_windows(run, run_tool):
    """``--resume`` with a longer schedule goes on from the trained weights, not from their average, and what it saves
    says the same windows. Prevents: a resumed training that is refused, or goes on with another normaliser.
    """
    work_dir = Path(shutil.copytree(run.work_dir, 'again'))
    Probe.seen.clear()
    options = run.options | run.longer
    assert run_tool('train', run.trained, '--work-dir', work_dir, '--resume', *flags(options)) == 0
    [(windows, maps)] = Probe.seen
    assert windows == run.windows
    assert same(maps, run.noted)
    last = torch.load((work_dir / 'last_checkpoint').read_text())
    assert pairs(last['state_dict']['backbone.pretrained_windows'].tolist(), 4) == run.windows


def test_converting_keeps_every_tensor_and_the_windows(run, run_tool, capsys):
    """Both forms of file, and timm's layout there and back, keep every tensor and the windows, in the meta and in the
    state. Prevents: a converted file under the windows of the config's text, which every later loader would believe.
    """
    backbone = run.backbone_state
    told = list(map(str, plain(run.windows)))
    assert run_tool('convert_ckpt', run.checkpoint, 'timm.pth', '--to', 'timm') == 0
    for source, name, arguments in (
        (run.checkpoint, 'ours.safetensors', []),
        (run.checkpoint, 'ours.pth', []),
        ('timm.pth', 'back.pth', ['--pretrained-window-sizes', *told]),
        ('timm.pth', 'back.safetensors', ['--pretrained-window-sizes', *told]),
    ):
        assert run_tool('convert_ckpt', source, name, *arguments) == 0
        content = read_file(name)
        weights = content['state_dict']
        assert content['meta']['pretrained_window_sizes'] == plain(run.windows)
        assert pairs(weights['pretrained_windows'].tolist(), 4) == run.windows
        # A classifier, which timm's layout is for, has one norm alone.
        lost = {key for key in backbone if key[:5] in ('norm0', 'norm1', 'norm2')} if source == 'timm.pth' else set()
        assert weights.keys() == backbone.keys() - lost
        assert all(torch.equal(tensor, backbone[key]) for key, tensor in weights.items())
    capsys.readouterr()


def test_functions_of_the_frameworks_return_what_was_trained(run, data):
    """``init_detector`` and ``init_model`` return what was trained, with the config that was written as with the one in
    the work dir. They drop ``init_cfg``, and options make ``init_detector`` keep it: the file of ImageNet is gone.
    Prevents: the window of the config in the place of the trained one, or a model that can't be had without a file
    that it does not need.
    """
    image = str(next(data.rglob('*.jpg')))
    for config, arguments in (
        *((config, {}) for config in run.configs),
        (run.configs[0], {'cfg_options': {'log_level': 'ERROR'}}),
    ):
        model, infer = initialise(config, run.checkpoint, **arguments)
        run.expect(model.backbone)
    assert infer(model, image) is not None


def test_load_checkpoint_of_mmengine_returns_what_was_trained(run):
    """``load_checkpoint`` into a model that mmengine has built from either config. Prevents: weights whose window stays
    behind where none of our tools takes part.
    """
    for config in run.configs:
        cfg = Config.fromfile(config)
        init_default_scope(cfg.default_scope)
        model = MODELS.build(cfg.model)
        load_checkpoint(model, run.checkpoint, map_location='cpu')
        run.expect(model.backbone)


@pytest.fixture
def contradicted(run):
    """The options of a config whose pretrained windows are wrong, and a check that both are named."""

    def names_both(text):
        text = ' '.join(text.split())
        assert str([WRONG] * 4) in text and str(plain(run.windows)) in text, text

    return {'model.backbone.pretrained_window_sizes': WRONG}, names_both


@pytest.mark.parametrize('way', ['test', 'resume', 'load_from'])
def test_tools_refuse_contradicting_windows(way, run, contradicted, run_tool, capsys):
    """Exit code 2, both values, and nothing written. Prevents: a config that overrules weights, without a word."""
    wrong, names_both = contradicted
    begun = ['train', run.trained, '--work-dir', 'out']
    options = run.options | wrong
    if way == 'load_from':
        options |= {'model.backbone.init_cfg': None, 'load_from': run.checkpoint}
    code = {
        'test': lambda: run_tool('test', run.configs[0], run.checkpoint, '--work-dir', 'out', *flags(wrong)),
        'resume': lambda: run_tool(*begun, '--resume', run.checkpoint, *flags(options | run.longer)),
        'load_from': lambda: run_tool(*begun, *flags(options)),
    }[way]()
    error = capsys.readouterr().err
    assert code == 2, error
    names_both(error)
    assert not Path('out').exists()


def test_functions_refuse_contradicting_windows(run, contradicted):
    """``init_detector`` or ``init_model``, ``load_checkpoint``, ``load_state_dict``, of a model and of its backbone.

    Prevents: a config that overrules weights where none of our tools takes part.
    """
    wrong, names_both = contradicted
    cfg = Config.fromfile(run.configs[0])
    cfg.merge_from_dict(wrong)
    cfg.model.backbone.init_cfg = None
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    for load_it in (
        lambda: initialise(run.configs[0], run.checkpoint, cfg_options=wrong),
        lambda: load_checkpoint(model, run.checkpoint, map_location='cpu'),
        lambda: model.load_state_dict(run.state),
        lambda: model.backbone.load_state_dict(run.backbone_state),
    ):
        with pytest.raises(ValueError) as raised:
            load_it()
        names_both(str(raised.value))
