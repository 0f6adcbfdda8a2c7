"""dist_*.sh and slurm_*.sh: what they start, with which arguments; and two processes that train like one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from support import ROOT, run_process
from support.tiny_training import write_config

TOOLS = ROOT / 'tools'


@pytest.fixture
def shell(tmp_path):
    """Run a script with stand-ins for python and srun, which print their arguments as JSON and exit with 7."""
    fake = tmp_path / 'with space' / 'bin'
    fake.mkdir(parents=True)
    for name in ('python', 'python3', 'srun'):
        (fake / name).write_text(
            f'#!{sys.executable}\nimport json, os, sys\nprint(json.dumps(sys.argv))\nsys.stdout.flush()\nos._exit(7)\n'
        )
        (fake / name).chmod(0o755)

    def run(script, *arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if name in ('PATH', 'HOME')}
        return subprocess.run(
            ['bash', TOOLS / script, *arguments],
            env=inherited | {'PYTHON': str(fake / 'python')} | environment,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )

    run.bin = fake
    return run


OPTIONS = ['--work-dir', 'a dir', '--cfg-options', 'model.x=[(1, 2)]', 'y="*"']


@pytest.mark.parametrize(
    ('script', 'tool', 'positional'),
    [('dist_train.sh', 'train.py', ['my config.py']), ('dist_test.sh', 'test.py', ['my config.py', 'my weights.pth'])],
)
def test_passes_arguments_on_as_they_are(script, tool, positional, shell):
    """Bug: unquoted ``$CONFIG`` and ``${@:3}`` tear a path with a space apart and expand stars."""
    result = shell(script, *positional, '3', *OPTIONS)
    program, *arguments = json.loads(result.stdout)
    assert program == str(shell.bin / 'python')
    assert arguments[:2] == ['-m', 'torch.distributed.run'] and '--nproc-per-node=3' in arguments
    begin = arguments.index(str(TOOLS / tool))
    assert arguments[begin + 1 :] == [*positional, *OPTIONS, '--launcher', 'pytorch']
    assert result.returncode == 7  # and the exit code comes back


def test_chooses_a_port_unless_told(shell):
    """Bug: two trainings on one machine both ask for port 29500."""
    assert '--standalone' in json.loads(shell('dist_train.sh', 'c.py', '2').stdout)
    arguments = json.loads(shell('dist_train.sh', 'c.py', '2', PORT='1234').stdout)
    assert '--standalone' not in arguments and '--master-port=1234' in arguments


@pytest.mark.parametrize('flag', [['--max-restarts', '3'], ['--max-restarts=3'], ['--max_restarts', '3']], ids=' '.join)
@pytest.mark.parametrize('place', [0, 2])
def test_max_restarts_is_passed_to_torchrun(flag, place, shell):
    """Bug: the flag is handed to train.py, which does not know it, or takes another argument along."""
    options = OPTIONS[:place] + flag + OPTIONS[place:]
    arguments = json.loads(shell('dist_train.sh', 'c.py', '2', *options, PORT='1234').stdout)
    begin = arguments.index(str(TOOLS / 'train.py'))
    assert arguments[begin + 1 :] == ['c.py', *OPTIONS, '--launcher', 'pytorch']
    assert '--max-restarts=3' in arguments[:begin]
    # By this a restarted process knows this run's checkpoints.
    assert len([argument for argument in arguments[:begin] if argument.startswith('--rdzv-id=')]) == 1


@pytest.mark.parametrize(
    ('options', 'environment', 'hint'),
    [
        (['--max-restarts'], {}, '--max-restarts 3'),
        (['--max-restarts', 'often'], {}, '--max-restarts 3'),
        (['--max-restarts', '3'], {'NNODES': '2', 'NODE_RANK': '0', 'MASTER_ADDR': 'host'}, '--resume'),
    ],
    ids=['none', 'text', 'machines'],
)
def test_restarts_that_torchrun_cannot_do_are_refused(options, environment, hint, shell):
    result = shell('dist_train.sh', 'c.py', '2', *options, **environment)
    assert (result.returncode, result.stdout) == (2, '') and hint in result.stderr


def test_several_machines_need_to_know_each_other(shell):
    arguments = json.loads(shell('dist_train.sh', 'c.py', '8', NNODES='2', NODE_RANK='1', MASTER_ADDR='host').stdout)
    assert arguments[1:6] == [
        str(TOOLS / 'meeting.py'),
        *('--nnodes=2', '--node-rank=1', '--master-addr=host', '--master-port=29500'),
    ]
    result = shell('dist_train.sh', 'c.py', '8', NNODES='2')
    assert (result.returncode, result.stdout) == (2, '') and 'MASTER_ADDR' in result.stderr


@pytest.mark.parametrize(
    ('script', 'arguments'),
    [
        ('dist_train.sh', []),
        ('dist_train.sh', ['c.py']),
        ('dist_train.sh', ['c.py', 'two']),
        ('dist_train.sh', ['c.py', '0']),
        ('dist_test.sh', ['c.py', '2']),
        ('dist_test.sh', ['c.py', 'w.pth', '--show-dir']),
        ('slurm_train.sh', ['partition', 'job', 'c.py']),
        ('slurm_test.sh', ['partition', 'job', 'c.py']),
    ],
)
def test_wrong_arguments_print_the_usage(script, arguments, shell):
    result = shell(script, *arguments)
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr.startswith('error: usage: ') and 'CONFIG' in result.stderr


@pytest.mark.parametrize(
    ('script', 'expected'),
    [
        ('slurm_train.sh', [str(TOOLS / 'train.py'), 'my config.py', '--work-dir', 'a dir']),
        ('slurm_test.sh', [str(TOOLS / 'test.py'), 'my config.py', 'a dir']),
    ],
)
def test_srun_gets_the_resources_and_the_tool_its_arguments(script, expected, shell):
    path = f'{shell.bin}:{os.environ["PATH"]}'
    result = shell(script, 'part', 'job', 'my config.py', 'a dir', '--amp', PATH=path, GPUS='4', SRUN_ARGS='-x a -w b')
    program, *arguments = json.loads(result.stdout)
    assert program.endswith('srun') and result.returncode == 7
    for option in ('--ntasks=4', '--ntasks-per-node=4', '--gres=gpu:4', '--job-name=job', '-x', '-w'):
        assert option in arguments
    begin = arguments.index('-u')
    assert arguments[begin - 1] == str(shell.bin / 'python')
    assert arguments[begin + 1 :] == [*expected, '--amp', '--launcher', 'slurm']


def test_an_active_environment_comes_first(shell):
    """Bug: the script's own choice of interpreter overrides the environment that the user has activated."""
    active = {'PYTHON': '', 'VIRTUAL_ENV': 'some', 'PATH': f'{shell.bin}:{os.environ["PATH"]}'}
    assert json.loads(shell('dist_train.sh', 'c.py', '2', **active).stdout)[0] == str(shell.bin / 'python3')


def test_two_processes_train_like_one(tmp_path, run_tool, monkeypatch):
    """Bug: gradients are summed, or averaged over the wrong number; processes see the same images; nothing is in sync.

    Two processes with one image each take the steps of one process with two.
    """
    settings = {'noise': False, 'optimizer': 'SGD', 'train_cfg': 'dict(by_epoch=True, max_epochs=2)'}
    write_config(tmp_path, 'one.py', batch_size=2, **settings)
    write_config(tmp_path, 'two.py', batch_size=1, **settings)
    together = run_process('bash', TOOLS / 'dist_train.sh', 'two.py', '2', '--work-dir', 'two processes')
    assert together.returncode == 0, together.stderr
    assert together.stderr.count('Checkpoints and logs are in') == 1
    assert run_tool('train', 'one.py', '--work-dir', 'one process') == 0
    one, two = (torch.load(f'{name}/epoch_2.pth')['state_dict'] for name in ('one process', 'two processes'))
    start = torch.load('one process/epoch_1.pth')['state_dict']
    moved = max((one[key] - start[key]).abs().max() for key in one)
    apart = max((one[key] - two[key]).abs().max() for key in one)
    assert apart < 1e-5 < moved, (apart, moved)


def test_of_several_processes_one_prints_a_mistake(tmp_path):
    """Bug: as many copies of a message as there are processes, or none because the wrong one was ended first."""
    result = run_process('bash', TOOLS / 'dist_train.sh', 'gone.py', '2', cwd=tmp_path)
    assert result.returncode != 0
    assert result.stderr.count('error: config gone.py does not exist') == 1
    assert list(tmp_path.iterdir()) == []
