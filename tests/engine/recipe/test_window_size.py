"""Validation and test at another window; and what the report says about windows."""

import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import DATASETS, MODELS
from support import ROOT
from support.tiny_training import TinyImages, write_config
from torch import nn

from swinv2_mm import SwinTransformerV2
from swinv2_mm.engine.recipe.window_size import WindowSizeHook
from swinv2_mm.engine.runs import build_runner, prepare_test, prepare_training
from swinv2_mm.engine.runs import test as run_test
from swinv2_mm.errors import UserError


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = SwinTransformerV2(
            embed_dims=8, depths=(1, 1), num_heads=(1, 1), out_indices=(1,), window_size=4
        )


class Runner:
    def __init__(self, model):
        self.model = model


@pytest.mark.parametrize('phase', ['val', 'test'])
@pytest.mark.parametrize('window', [7, [7, 5], [(7, 3), (2, 2)]])
def test_training_goes_on_with_its_own_window(phase, window):
    """Prevents: a training that silently continues at the window of its validation."""
    runner, hook = Runner(Model()), WindowSizeHook(window)
    other = SwinTransformerV2(embed_dims=8, depths=(1, 1), num_heads=(1, 1), out_indices=(1,), window_size=window)
    getattr(hook, f'before_{phase}')(runner)
    assert runner.model.backbone.window_size == other.window_size
    assert runner.model.backbone.pretrained_window_sizes == ((4, 4), (4, 4))
    getattr(hook, f'after_{phase}')(runner)
    assert runner.model.backbone.window_size == ((4, 4), (4, 4))


def test_what_cannot_be_set_is_said():
    """Prevents: figures of the trained window under the name of another."""
    with pytest.raises(UserError, match=r'no swinv2_mm\.SwinTransformerV2'):
        WindowSizeHook(8).before_test(Runner(nn.Linear(1, 1)))
    with pytest.raises(UserError, match='3 entries for 2 stages'):
        WindowSizeHook([8, 8, 8]).before_test(Runner(Model()))


@pytest.mark.usefixtures('own_process')
def test_one_checkpoint_at_several_windows(tmp_path, randomize):
    """--window-size reaches the model that is tested, and nothing else of it changes. Prevents: an option for show."""
    config = write_config(tmp_path, 'tiny.py')
    cfg = prepare_training(str(config), work_dir=str(tmp_path / 'work'))
    runner = build_runner(cfg)
    randomize(runner.model)  # a fresh block is the identity at any window
    torch.save({'state_dict': runner.model.state_dict(), 'meta': {}}, tmp_path / 'weights.pth')
    errors = []
    for given, kept in ((None, []), ([4], [4]), ([2], [2]), ([2, 3], [[2, 3]])):
        cfg = prepare_test(str(config), str(tmp_path / 'weights.pth'), work_dir=cfg.work_dir, window_size=given)
        hooks = [hook for hook in cfg.get('custom_hooks') or [] if hook['type'] == 'swinv2_mm.WindowSizeHook']
        assert [hook['window_size'] for hook in hooks] == kept
        errors.append(run_test(cfg)['error'])
    assert errors[0] == errors[1] and len(set(errors)) == 3


@MODELS.register_module()
class Averaged(BaseTTAModel):
    def merge_preds(self, data_samples_list):
        return [sum(samples) / len(samples) for samples in data_samples_list]


@DATASETS.register_module()
class PipedImages(TinyImages):
    def __init__(self, augment, pipeline=()):
        super().__init__(augment)


@pytest.mark.usefixtures('own_process')
@pytest.mark.parametrize('tta', [False, True])
def test_a_wrong_window_is_told_before_the_test(tmp_path, tta):
    """Prevents: a test-time augmented test that sets up everything, and then says that the window cannot be."""
    config = write_config(
        tmp_path,
        extra=(
            "test_dataloader = dict(val_dataloader, dataset=dict(type='PipedImages', augment=False))\n"
            "tta_model, tta_pipeline = dict(type='Averaged'), [dict(type='Anything')]\n"
        ),
    )
    cfg = prepare_training(str(config), work_dir='work')
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, 'weights.pth')
    prepare_test(str(config), 'weights.pth', tta=tta, window_size=[2, 3])
    with pytest.raises(UserError, match='3 entries for 2 stages'):
        prepare_test(str(config), 'weights.pth', tta=tta, window_size=[4, 4, 4])


def test_the_report_of_a_config(run_tool, capsys):
    """Prevents: advice for another window, size or model than the config's."""
    assert run_tool('window_report', ROOT / 'configs' / 'maskrcnn_swinv2_t.py', '--windows', '8', '24') == 0
    model = SwinTransformerV2('tiny', window_size=16)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert '800 x 1333' in lines[0]
    row = next(line for line in lines if '(config)' in line)
    assert ' '.join(f'{cost:.2f}' for cost in model.padding_cost((800, 1333))) in row
    assert f'{sum(model.multiply_adds((800, 1333))) / 1e9:.1f}' in row
    assert "window_fit='balanced'" in printed
    for wrong in (['--shape', '0'], ['--shape', '1', '2', '3'], ['--windows', '0'], ['--shape', 'a']):
        assert run_tool('window_report', ROOT / 'configs' / 'upernet_swinv2_t.py', *wrong) == 2
        assert wrong[0] in capsys.readouterr().err
