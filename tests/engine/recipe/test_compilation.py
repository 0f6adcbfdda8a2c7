"""A compiled training: the same steps, the same checkpoints, beside averaged weights; and what is refused."""

import shutil

import pytest
import torch
from mmengine.config import Config
from support.tiny_training import write_config

from swinv2_mm.engine.recipe.compilation import compile_backbone
from swinv2_mm.engine.runs import prepare_test, prepare_training, train
from swinv2_mm.engine.runs import test as run_test
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')

AVERAGED = "custom_hooks.append(dict(type='EMAHook', momentum=0.1))\n"
# Without inductor, which takes a minute; the flag leaves a hook that is there as it is.
QUICK = "custom_hooks.append(dict(type='swinv2_mm.CompileBackboneHook', backend='aot_eager'))\n"


def test_trains_validates_and_tests_like_the_model_that_is_not(tmp_path):
    """Weights, averages, metrics and the names in checkpoints. Prevents: ``_orig_mod`` in every name, averages of a
    copy that cannot run, and a graph that validates other weights."""
    settings = {'noise': False, 'train_cfg': 'dict(by_epoch=True, max_epochs=2, val_interval=1)'}
    write_config(tmp_path, 'plain.py', AVERAGED, **settings)
    write_config(tmp_path, 'compiled.py', AVERAGED + QUICK, **settings)
    train(prepare_training('plain.py', work_dir='plain'))
    torch._dynamo.reset()
    runner = train(prepare_training('compiled.py', work_dir='compiled', compile=True))
    assert runner.model.backbone._compiled_call_impl is not None
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    mine, expected = (read_checkpoint(f'{name}/epoch_2.pth') for name in ('compiled', 'plain'))
    for part in ('state_dict', 'ema_state_dict'):
        assert mine[part].keys() == expected[part].keys()
        for name, tensor in expected[part].items():
            torch.testing.assert_close(mine[part][name], tensor, rtol=0, atol=1e-4, msg=name)
    errors = [checkpoint['message_hub']['log_scalars']['val/error'].data[0] for checkpoint in (mine, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)
    tested = []
    for name in ('compiled', 'plain'):
        cfg = prepare_test(f'{name}.py', 'plain/epoch_2.pth', work_dir='tested', compile=name == 'compiled')
        tested.append(run_test(cfg)['error'])
    assert tested[0] == pytest.approx(tested[1], rel=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ('config', 'hint'),
    [
        ({'compile': True}, 'compile='),
        ({'runner_type': 'swinv2_mm.FSDP2Runner'}, 'FSDP2Runner'),
    ],
)
def test_refuses_what_would_compile_twice_or_in_part(config, hint):
    with pytest.raises(UserError, match=hint):
        compile_backbone(Config(config))


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU needs no C++ compiler')
def test_names_the_compiler_that_is_missing(monkeypatch):
    """Prevents: a traceback from inductor in the first iteration."""
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    monkeypatch.setenv('CXX', 'clang++')
    with pytest.raises(UserError, match=r'C\+\+ compiler, and clang\+\+ is not installed'):
        compile_backbone(Config({}))
