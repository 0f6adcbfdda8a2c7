"""A class of a framework whose package is not installed is reported before anything is written."""

from importlib.machinery import ModuleSpec
from importlib.util import find_spec

import pytest
from support.tiny_training import write_config

from swinv2_mm.engine.checks import lookup
from swinv2_mm.engine.runs import prepare_training
from swinv2_mm.errors import UserError

pytestmark = pytest.mark.usefixtures('own_process')
BACKENDS = """
visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend'), dict(type='WandbVisBackend')])
"""
GONE = 'wandb', 'lvis', 'lion_pytorch'
MISSING = {
    'backend': (BACKENDS, r'visualizer\.vis_backends\.1: .*pip install wandb, or leave out'),
    'metric': (
        "val_evaluator = [dict(type='TinyError'), dict(type='mmdet.LVISMetric')]",
        r'val_evaluator\.1: LVISMetric .*pip install git\+https',
    ),
    'optimizer': ("optim_wrapper['optimizer']['type'] = 'Lion'", r'optimizer\.type=Lion .*pip install lion-pytorch'),
}


@pytest.mark.parametrize('case', MISSING)
def test_a_missing_package_is_named_with_its_remedy(case, tmp_path, monkeypatch):
    """Bug: a traceback of an ImportError after the work dir was made, or of a RuntimeError after the first epoch."""
    if case == 'metric':
        pytest.importorskip('mmdet')
    monkeypatch.setattr(lookup, 'find_spec', lambda name: None if name in GONE else find_spec(name))
    extra, told = MISSING[case]
    with pytest.raises(UserError, match=told):
        prepare_training(write_config(tmp_path, extra=extra))
    assert [path.name for path in tmp_path.iterdir()] == ['tiny.py']


def test_its_output_folder_is_no_package(tmp_path, monkeypatch):
    """Bug: a folder ./wandb of earlier runs, which Python would import as a namespace, passes for the package."""
    spec = ModuleSpec('wandb', None, is_package=True)
    monkeypatch.setattr(lookup, 'find_spec', lambda name: spec)
    config = write_config(tmp_path, extra=BACKENDS)
    spec.submodule_search_locations[:] = [str(tmp_path / 'wandb')]
    with pytest.raises(UserError, match='pip install wandb'):
        prepare_training(config)
    spec.submodule_search_locations[:] = [str(tmp_path / 'site-packages' / 'wandb')]
    prepare_training(config)
