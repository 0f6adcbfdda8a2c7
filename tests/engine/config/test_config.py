"""Config files and options: a mistake is named, and no option is silently without effect."""

import pytest
from mmengine.config import Config
from support.tiny_training import write_config

from swinv2_mm.engine.config import apply_options, load_config
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')

CONFIG = """
data_root = 'data/here/'
model = dict(type='Detector', backbone=dict(type='Backbone', init_cfg=None, depth=2), heads=[dict(type='A', size=1)])
train_dataloader = dict(batch_size=2, dataset=dict(type='Data', data_root=data_root))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
"""


def merge(**options):
    cfg = Config.fromstring(CONFIG, '.py')
    apply_options(cfg, {key.replace('__', '.'): value for key, value in options.items()}, 'some.py')
    return cfg


def test_known_keys_change_in_silence(capsys):
    cfg = merge(model__backbone__depth=3, model__heads__0__size=2, train_dataloader__batch_size=1)
    assert (cfg.model.backbone.depth, cfg.model.heads[0].size, cfg.train_dataloader.batch_size) == (3, 2, 1)
    assert capsys.readouterr().err == ''


def test_new_keys_change_with_a_warning_that_names_close_ones(capsys):
    """Bug: ``train_cfg.max_epoch=1`` trains for as long as before, without a word."""
    assert merge(train_cfg__max_epoch=1).train_cfg.max_epoch == 1
    warning = capsys.readouterr().err
    assert warning.startswith('warning: --cfg-options train_cfg.max_epoch') and warning.count('\n') == 1
    assert 'Did you mean train_cfg.max_epochs?' in warning


@pytest.mark.parametrize(
    ('key', 'hint'),
    [
        ('model__backbon__depth', 'Did you mean model.backbone?'),
        ('model__backbone__depth__x', 'model.backbone.depth is 2'),
        ('model__backbone__init_cfg__checkpoint', 'pass model.backbone.init_cfg.type='),
        ('model__heads__1__size', 'it has no model.heads.1'),
        ('model__heads__size', 'a list of 1'),
        ('default_hooks__checkpoint__interval', 'default_hooks.checkpoint.type='),
    ],
)
def test_refuses_keys_inside_of_nothing(key, hint):
    """Bug: a misspelt parent makes a new branch that nothing reads, or a half dict that breaks far away."""
    with pytest.raises(UserError) as error:
        merge(**{key: 1})
    assert hint in str(error.value)


def test_creates_what_is_given_a_type():
    """Bug: there would be no way to name a checkpoint for the backbone on the command line."""
    cfg = merge(model__backbone__init_cfg__type='Pretrained', model__backbone__init_cfg__checkpoint='a.pth')
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='a.pth')


def test_creates_settings_of_the_runner(capsys):
    cfg = merge(randomness__seed=1, load_from='a.pth', find_unused_parameters=True)
    assert (cfg.randomness.seed, cfg.load_from, cfg.find_unused_parameters) == (1, 'a.pth', True)
    assert 'load_from' not in capsys.readouterr().err


def test_warns_of_variables_that_were_used_up(capsys):
    """Bug: ``data_root=…`` on the command line changes a variable after everything was built from it."""
    merge(data_root='elsewhere')
    assert 'train_dataloader.dataset.data_root' in capsys.readouterr().err


def test_names_the_file_and_line_that_do_not_parse(tmp_path):
    """Bug: mmengine names its temporary copy, which is gone, or nothing at all."""
    base, leaf = tmp_path / 'base.py', tmp_path / 'leaf.py'
    leaf.write_text("_base_ = './base.py'\n")
    for text, reason in (('a = 1\nb = (\n', 'line 2'), ('a = 1\nb = unknown\n', "line 2.*NameError.*'unknown'")):
        base.write_text(text)
        for path in (base, leaf):
            with pytest.raises(UserError, match=rf'{base}, {reason}') as error:
                load_config(path)
            assert ('inherited by' in str(error.value)) == (path == leaf)
    base.unlink()
    with pytest.raises(UserError, match=rf'{base} \(inherited by .*it does not exist'):
        load_config(leaf)


@pytest.mark.parametrize('text', ["_base_ = 'mmpretrain::_base_/default_runtime.py'", "default_scope = 'mmpretrain'"])
def test_names_the_framework_that_is_missing(text, tmp_path):
    """Bug: a ModuleNotFoundError from within the registry, after the work dir was made."""
    path = tmp_path / 'needs.py'
    path.write_text(text)
    with pytest.raises(
        UserError, match=r'builds on MMPretrain, and mmpretrain cannot be imported.*pip install mmpretrain.*doctor'
    ):
        load_config(path)


def test_loads_a_config_by_any_path(tmp_path, monkeypatch):
    write_config(tmp_path)
    (tmp_path / 'inside').mkdir()
    monkeypatch.chdir(tmp_path / 'inside')
    assert load_config('../tiny.py').model.type == 'TinyRegressor'
