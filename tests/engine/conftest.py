"""The tiny training, and the settings of the process that the code under test changes, put back after each test."""

import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))


@pytest.fixture(autouse=True)
def _own_process(tmp_path, monkeypatch):
    """Run in an empty folder, and give back the environment and what torch.load allows."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    allowed, environment = torch.serialization.get_safe_globals(), dict(os.environ)
    torch.serialization.clear_safe_globals()
    yield
    torch.set_num_threads(threads)
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The work dir of a finished tiny training, with a checkpoint per epoch as mmengine writes them."""
    from tiny_training import write_config

    from swinv2_mm.engine.runs import prepare_training, train

    folder = tmp_path_factory.mktemp('trained')
    return Path(train(prepare_training(write_config(folder, 'trained.py'), work_dir=str(folder / 'run'))).work_dir)
