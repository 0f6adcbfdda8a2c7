"""Fixtures of the tests that train: a process that is put back, a finished tiny training, the tools as functions."""

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from support import ROOT, load_script
from support.tiny_training import write_config
from swinv2_mm.compat import VERSION
from swinv2_mm.engine.runs import prepare_training, train
from swinv2_mm.engine.runs.command_line import exit_code


def load_tool(name):
    """The module of ``tools/<name>.py``."""
    return load_script(ROOT / 'tools' / f'{name}.py')


class ForkServer:
    """Runs ``tools/train.py`` in forks of an interpreter that has imported everything, see fork_server.py.

    Args:
        prefix: A command that starts the interpreter, such as one that changes the network.
    """

    def __init__(self, *prefix):
        environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{ROOT}/tests')
        self.process = subprocess.Popen(
            [*prefix, sys.executable, ROOT / 'tests' / 'support' / 'fork_server.py'],
            text=True,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def train(self, *args, **kwargs):
        """Do as :meth:`start`, and wait for the end as :meth:`end`."""
        self.start(*args, **kwargs)
        return self.end()

    def start(
        self,
        folder,
        work_dir,
        *arguments,
        processes=1,
        at=None,
        number=signal.SIGKILL,
        rank=0,
        first_rank=0,
        world=None,
        address='127.0.0.1',
        port=None,
        environment=(),
    ):
        """Train to the end, or until process ``rank`` here gets signal ``number`` in front of its event ``at``.

        Args:
            processes: Of this machine, ``first_rank`` and so on of ``world``; by default there are no others.
            address: Where the first of all processes is, with ``port``.
            environment: Variables to set.
        """
        arguments = [*map(str, arguments), '--work-dir', work_dir]
        request = {
            'folder': str(folder),
            'work_dir': work_dir,
            'arguments': arguments,
            'processes': processes,
            'at': at,
            'signal': number,
            'rank': rank,
            'first_rank': first_rank,
            'world': world,
            'address': address,
            'port': port,
            'environment': dict(environment),
        }
        print(json.dumps(request), file=self.process.stdin, flush=True)

    def end(self):
        """Wait for the end: the exit codes of the processes, what they printed, and which left data workers behind."""
        answer = json.loads(self.process.stdout.readline())
        return answer['codes'], answer['output'], answer['left']

    def ended(self, seconds):
        """Whether the training ends within so many seconds."""
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def close(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope='session')
def fork_server():
    server = ForkServer()
    yield server
    server.close()


@contextmanager
def put_back():
    """Give back what a run changes in its process: the environment, what torch.load allows, the number of threads."""
    threads, load, environment = torch.get_num_threads(), torch.load, dict(os.environ)
    allowed = torch.serialization.get_safe_globals() if VERSION >= (2, 6) else []
    torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other
    yield
    torch.set_num_threads(threads)
    torch.load = load
    if VERSION >= (2, 6):
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def own_process(tmp_path, monkeypatch):
    """Run in an empty folder, and leave no traces in the process."""
    monkeypatch.chdir(tmp_path)
    with put_back():
        yield


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """The work dir of a finished tiny training, with a checkpoint per epoch as our tools write them."""
    folder = tmp_path_factory.mktemp('trained')
    with put_back():
        train(prepare_training(write_config(folder, 'trained.py'), work_dir=str(folder / 'run')))
    return folder / 'run'


def mmengine_runner(config, work_dir, **keys):
    """mmengine's runner of a tiny config, with none of our tools; the keys change the config."""
    cfg = Config.fromfile(config)
    cfg.default_hooks.pop('report')
    cfg.update(work_dir=str(work_dir), **keys)
    return Runner.from_cfg(cfg)


@pytest.fixture(scope='session')
def mmengine_trained(tmp_path_factory):
    """As ``trained``, by plain mmengine: its checkpoints hold HistoryBuffers and NumPy's scalars."""
    folder = tmp_path_factory.mktemp('mmengine_trained')
    with put_back():
        mmengine_runner(write_config(folder, 'mmengine_trained.py'), folder / 'run').train()
    return folder / 'run'


@pytest.fixture
def run_tool(monkeypatch, own_process):
    """Call ``tools/<name>.py`` with arguments as a shell would, in this process; returns the exit code."""

    def run(name, *arguments):
        arguments = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, 'argv', [f'tools/{name}.py', *arguments])
        # mmengine names a run by its config and the second: another of this name in the same one would have its scope.
        DefaultScope._instance_dict.clear()
        return exit_code(load_tool(name).main, arguments)

    return run
