"""Slurm, really: slurm_train.sh and slurm_test.sh on a cluster of two nodes, and jobs that go on by themselves."""

import re
import sys
import time

import pytest
from support import ROOT
from support.resuming import check_same, left_in
from support.slurm_cluster import Cluster, what_is_missing
from support.snippets import BLOCKS
from support.tiny_training import write_config

from swinv2_mm.datasets import ShapesSpec, write_shapes
from swinv2_mm.engine.saving.reading import latest_checkpoint, read_checkpoint

pytestmark = pytest.mark.slow
NODES = {'GPUS': '2', 'GPUS_PER_NODE': '1', 'CPUS_PER_TASK': '1'}
SMALL = [
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'model.backbone.depths=(1,1,1,1)',
    'model.backbone.window_size=4',
    'train_dataloader.batch_size=2',
    *(f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')),
    *(f'{split}_dataloader.dataset.data_root=shapes' for split in ('train', 'val', 'test')),
]


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with Cluster(tmp_path_factory.mktemp('slurm')) as cluster:
        cluster.environment |= {'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{ROOT}:{ROOT}/tests'}
        yield cluster


def test_two_nodes_train_and_test(cluster, tmp_path):
    """Bug: a node that does not find the other, a device of CUDA asked for where is none, or a port for all jobs."""
    write_shapes(ShapesSpec(size=128, num_train=3, num_val=2), tmp_path / 'shapes')
    config = ROOT / 'configs' / 'upernet_swinv2_t_shapes.py'
    for script, last in (('slurm_train.sh', 'work'), ('slurm_test.sh', 'work/epoch_1.pth')):
        command = ['bash', ROOT / 'tools' / script, 'main', 'shapes', config, last, '--cfg-options', *SMALL]
        done = cluster.run(*command, cwd=tmp_path, env=NODES)
        assert done.returncode == 0, done.stdout + done.stderr + cluster.logs()
    assert 'mIoU' in done.stdout + done.stderr
    assert read_checkpoint(tmp_path / 'work/epoch_1.pth')['meta']['iter'] == 1  # of three images, on two processes


def job_of_the_docs(**replaced):
    """The script for sbatch in docs/distributed.md, for this cluster."""
    (script,) = [block.text for block in BLOCKS if '#SBATCH' in block.text]
    for old, new in {
        '--ntasks-per-node=8 --cpus-per-task=5 --gres=gpu:8': '--ntasks-per-node=1 --cpus-per-task=1 --gres=gpu:1',
        'GPUS=16 bash tools': f'GPUS=2 GPUS_PER_NODE=1 CPUS_PER_TASK=1 bash {ROOT}/tools',
        'PARTITION JOB CONFIG WORK_DIR': 'main tiny tiny.py work',
        'PARTITION': 'main',
        **replaced,
    }.items():
        assert old in script
        script = script.replace(old, new)
    return script


def submit(cluster, folder, script):
    (folder / 'job.sh').write_text(script)
    return re.search(r'\d+', cluster.run('sbatch', 'job.sh', cwd=folder).stdout)[0]


def check_end(cluster, fork_server, folder, number, settings):
    """The job has completed, was put back, and left what an undisturbed run leaves."""
    end = cluster.wait_for_job(number, 1200)
    output = (folder / f'slurm-{number}.out').read_text()
    assert (end['JobState'], end['ExitCode']) == ('COMPLETED', '0:0'), output + cluster.logs()
    assert int(end['Restarts']) >= 1, output
    write_config(folder, 'straight.py', **(settings | {'extra': ''}))
    codes, straight, _ = fork_server.train(folder, 'straight', 'straight.py', processes=2)
    assert codes == [0, 0], straight
    straight, resumed = left_in(folder / 'straight'), left_in(folder / 'work')
    straight.pop('straight.py'), resumed.pop('tiny.py')
    check_same(straight, resumed, output)
    return output


def slow(seconds):
    return {'batch_size': 1, 'extra': f"custom_hooks.append(dict(type='SlowHook', seconds={seconds}))\n"}


def test_a_job_goes_on_after_its_time_limit(cluster, fork_server, tmp_path):
    """Bug: a signal that kills the processes or their data workers, one process that ends the others while it saves, an
    exit code that srun or the script loses, a job that begins again."""
    settings = slow(20)  # four minutes in all
    write_config(tmp_path, **settings)
    script = job_of_the_docs(**{'--time=12:00:00 --signal=USR1@300': '--time=3 --signal=USR1@60'})
    output = check_end(cluster, fork_server, tmp_path, submit(cluster, tmp_path, script), settings)
    assert re.search(r'told to end by SIGUSR1 after iteration \d+', output)


def test_a_job_that_is_requeued_goes_on(cluster, fork_server, tmp_path):
    """Bug: a job that an operator puts back begins again, or cannot read what its killed processes were writing."""
    settings = slow(3)
    write_config(tmp_path, **settings)
    number = submit(cluster, tmp_path, job_of_the_docs())
    end = time.monotonic() + 300
    while not ((tmp_path / 'work').is_dir() and latest_checkpoint(tmp_path / 'work')):
        assert time.monotonic() < end, cluster.job(number) + cluster.logs()
        time.sleep(0.5)
    assert cluster.run('scontrol', 'requeue', number).returncode == 0
    check_end(cluster, fork_server, tmp_path, number, settings)
