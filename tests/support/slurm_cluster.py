"""A Slurm cluster in a folder: a controller and two nodes on this machine, with two GPUs each that nobody looks for.

Debian's slurm-wlm and munge, as root, without systemd and cgroups: each daemon has its own port, socket and folder, and
nothing outside of the folder changes. The names of the nodes are known in the daemons and in the jobs alone.

    python tests/support/slurm_cluster.py FOLDER

starts one and prints what to set in the environment of sbatch, srun and scontrol; Ctrl-C ends it.
"""

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'srun', 'sbatch', 'scontrol', 'unshare')
NODES = ('node1', 'node2')
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
InactiveLimit=0
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def what_is_missing() -> str:
    """Why there can be no cluster here; empty if there can."""
    if os.geteuid() != 0:
        return 'the daemons of Slurm need root'
    missing = [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        return f'no {missing[0]}: apt-get install slurm-wlm munge'
    if subprocess.run(['unshare', '--mount', 'true'], capture_output=True).returncode:
        return 'no mount namespaces, in which the names of the nodes are known'
    return ''


_PATH = f'{os.environ.get("PATH", "")}:/usr/sbin:/sbin'


class Cluster:
    """A context that starts the daemons and ends them; ``environment`` is for the commands of Slurm."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.daemons = folder, []
        self.environment = {'SLURM_CONF': str(folder / 'slurm.conf')}

    def __enter__(self) -> 'Cluster':
        for name in ('munge', 'state', *(f'spool-{node}' for node in NODES)):
            (self.folder / name).mkdir()
        (self.folder / 'munge/key').write_bytes(secrets.token_bytes(1024))
        (self.folder / 'munge/key').chmod(0o400)
        config = CONFIG.format(folder=self.folder, host=socket.gethostname(), ports=free_ports(3))
        (self.folder / 'slurm.conf').write_text(config)
        gpus = ''.join(f'NodeName={node} Name=gpu File={self.folder}/{node}-gpu[0-1]\n' for node in NODES)
        (self.folder / 'gres.conf').write_text(gpus)
        for node in NODES:
            for index in range(2):
                # Slurm asks only whether the device is there; this one is /dev/null.
                os.mknod(self.folder / f'{node}-gpu{index}', stat.S_IFCHR | 0o666, os.makedev(1, 3))
        hosts = Path('/etc/hosts').read_text()
        (self.folder / 'hosts').write_text(hosts + ''.join(f'127.0.0.1 {node}\n' for node in NODES))
        try:
            self._start('munged', '--foreground', '--force', *self._of_munge())
            self._wait(lambda: (self.folder / 'munge/socket').exists(), 'munged')
            self._start('slurmctld', '-D')
            for node in NODES:
                self._start('slurmd', '-D', '-N', node)
            self._wait(lambda: self.run('sinfo', '-h', '-o', '%T %D').stdout.split() == ['idle', '2'], 'the nodes')
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.run('scancel', '--user=root', '--signal=KILL', '--full')
        for daemon in reversed(self.daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: object, **options: object) -> subprocess.CompletedProcess:
        """Run a command of Slurm, or one that calls it."""
        environment = {**os.environ, **self.environment, 'PATH': _PATH, **options.pop('env', {})}
        return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, **options)

    def wait_for_job(self, number: str, seconds: float = 600) -> dict[str, str]:
        """What Slurm says of a job that has ended, by key; a requeued job starts at once instead of after minutes."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            said = dict(pair.split('=', 1) for pair in self.job(number).split() if '=' in pair)
            if said['JobState'] in ('COMPLETED', 'FAILED', 'TIMEOUT', 'CANCELLED', 'NODE_FAIL'):
                return said
            if said['JobState'] == 'PENDING' and said.get('Reason') == 'BeginTime':
                time.sleep(2)  # within a second Slurm takes it for the job that it has just revoked
                self.run('scontrol', 'update', f'jobid={number}', 'starttime=now')
            time.sleep(0.5)
        raise TimeoutError(self.job(number) + self.logs())

    def job(self, number: str) -> str:
        return self.run('scontrol', 'show', 'job', number).stdout

    def logs(self) -> str:
        """The last lines of all daemons."""
        return ''.join(f'\n{path.name}:\n{path.read_text()[-1500:]}' for path in sorted(self.folder.glob('*.log')))

    def _start(self, *command: str) -> None:
        hosts = ['unshare', '--mount', 'sh', '-c', f'mount --bind {self.folder}/hosts /etc/hosts && exec "$@"', 'sh']
        with open(self.folder / f'{command[0]}.out', 'a') as out:
            environment = {**os.environ, **self.environment, 'PATH': _PATH}
            self.daemons.append(subprocess.Popen([*hosts, *command], env=environment, stdout=out, stderr=out))

    def _of_munge(self) -> list[str]:
        files = {'key-file': 'key', 'socket': 'socket', 'pid-file': 'pid', 'log-file': 'log', 'seed-file': 'seed'}
        return [f'--{option}={self.folder}/munge/{name}' for option, name in files.items()]

    def _wait(self, ready: object, what: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > end:
                raise TimeoutError(f'{what} did not start. {self.logs()}')
            time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(('127.0.0.1', 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


if __name__ == '__main__':
    home = Path(sys.argv[1]).absolute()
    home.mkdir(parents=True)
    with Cluster(home) as cluster:
        print(*(f'export {name}={value}' for name, value in cluster.environment.items()), sep='\n', flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print('ended')
