"""Two machines on this one: network namespaces with an address and a host name each, and a cable between them.

Each has a folder of its own, so they share no files unless a test says so.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import ROOT
from support.tiny_fixtures import ForkServer

PREFIX = 'swinv2mm'
PORT = 29500


def ip(*arguments):
    """Run iproute2."""
    return subprocess.run(['ip', *map(str, arguments)], check=True, capture_output=True, text=True).stdout


class Machine:
    """One of them: a namespace that ``ip`` names, the end of the cable in it, and a folder."""

    def __init__(self, number, folder):
        self.number, self.folder = number, folder / f'node{number}'
        self.folder.mkdir()
        self.space, self.end = f'{PREFIX}-{os.getpid()}-{number}', f'cable{number}'
        self.address = f'10.99.7.{number + 1}'
        # Its host name is known to nobody, as in many clusters.
        self.inside = [
            *('ip', 'netns', 'exec', self.space, 'unshare', '--uts'),
            *('sh', '-c', f'hostname node{number} && exec "$@"', 'sh'),
        ]
        self.server = None
        ip('netns', 'add', self.space)

    def start_server(self):
        self.server = ForkServer(*self.inside)

    def link(self, state):
        """Plug the cable in (``'up'``) or out (``'down'``)."""
        ip('-n', self.space, 'link', 'set', self.end, state)

    def slow(self, rate):
        """Send no more than so many bits per second, with a queue so short that packets are lost."""
        self.queue('replace', 'root', 'tbf', *f'rate {rate} burst 5kb limit 10kb'.split())

    def fast(self):
        self.queue('del', 'root')

    def queue(self, what='show', *settings):
        """Set the queue in front of the cable, or show how many packets it has dropped."""
        command = 'tc', '-s', '-n', self.space, 'qdisc', what, 'dev', self.end, *settings
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def launch(self, *command, **environment):
        """Start a command here, in the folder of this machine; its output goes on in ``output``."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith('GLOO_')}
        own = dict(PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{ROOT}/tests')
        with open(self.folder / 'output', 'w') as output:
            return subprocess.Popen(
                [*self.inside, *map(str, command)],
                cwd=self.folder,
                env=inherited | own | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def dist_train(self, *arguments, node_rank=None, address='10.99.7.1', **environment):
        """Start ``tools/dist_train.sh`` with two processes, as one of two machines."""
        rank = self.number if node_rank is None else node_rank
        settings = dict(NNODES='2', NODE_RANK=str(rank), MASTER_ADDR=address, PORT=str(PORT)) | environment
        config, *arguments = arguments
        return self.launch('bash', ROOT / 'tools' / 'dist_train.sh', config, '2', *arguments, **settings)

    @property
    def output(self):
        return (self.folder / 'output').read_text()

    def kill(self):
        """Kill all processes here at once, but for the server of the tests."""
        for _ in range(10):  # one may start another
            servers = [self.server.process.pid] if self.server else []
            left = [int(pid) for pid in ip('netns', 'pids', self.space).split() if int(pid) not in servers]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.1)

    def remove(self):
        if self.server:
            self.server.close()
            self.server = None
        self.kill()
        ip('netns', 'del', self.space)  # with its end of the cable


class TwoMachines(list):
    """Both, the cable, and runs by two processes on each."""

    def __init__(self, folder):
        for name in ip('netns', 'list').split():  # of tests that were killed
            if name.startswith(PREFIX) and not Path('/proc', name.split('-')[1]).exists():
                ip('netns', 'del', name)
        try:
            for number in range(2):
                self.append(Machine(number, folder))
            first, second = self
            names = 'type', 'veth', 'peer', 'name', second.end, 'netns', second.space
            ip('link', 'add', first.end, 'netns', first.space, *names)
            for machine in self:
                ip('-n', machine.space, 'address', 'add', f'{machine.address}/24', 'dev', machine.end)
                ip('-n', machine.space, 'link', 'set', 'lo', 'up')
                machine.link('up')
        except BaseException:
            self.remove()
            raise

    def remove(self):
        for machine in self:
            machine.remove()

    def start(self, work_dir, *arguments, processes=2, environment=()):
        """Start a training by so many processes on each machine."""
        self.forget()
        for machine in self:
            if machine.server is None:
                machine.start_server()
        for machine in self:
            machine.server.start(
                machine.folder,
                work_dir,
                *arguments,
                processes=processes,
                first_rank=processes * machine.number,
                world=2 * processes,
                address=self[0].address,
                port=PORT,
                environment=environment,
            )

    def end(self):
        """Wait for the end on both machines: their exit codes, and what they printed."""
        codes, outputs, _ = zip(*(machine.server.end() for machine in self), strict=True)
        return codes, outputs

    def train(self, *args, **kwargs):
        self.start(*args, **kwargs)
        return self.end()

    def forget(self):
        """Be ready for another WaitHook."""
        for machine in self:
            for name in ('reached', 'go_on'):
                Path(machine.folder, name).unlink(missing_ok=True)

    def wait_until_reached(self):
        """Wait for the WaitHook of the run."""
        for _ in range(3000):
            if Path(self[0].folder, 'reached').exists():
                return
            time.sleep(0.1)
        raise TimeoutError('the iteration was not reached')

    def go_on(self):
        Path(self[0].folder, 'go_on').touch()

    def write(self, name, text):
        """Write a file on both."""
        for machine in self:
            Path(machine.folder, name).write_text(text)

    def copy_to_second(self, name):
        """Copy a file of the first machine to the second, as somebody does who has no shared file system."""
        target = Path(self[1].folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(self[0].folder, name), target)


def reason_to_skip():
    """Why there can be no two machines here; empty if there can."""
    if not sys.platform.startswith('linux') or os.geteuid() != 0:
        return 'network namespaces are made by root on Linux'
    missing = [name for name in ('ip', 'tc', 'unshare') if shutil.which(name) is None]
    if missing:
        return f'{", ".join(missing)} is not installed (iproute2, util-linux)'
    name = f'{PREFIX}-{os.getpid()}-try'
    try:
        ip('netns', 'add', name)
        ip('netns', 'del', name)
    except subprocess.CalledProcessError as error:
        return f'no network namespaces here: {error.stderr.strip()}'
    return ''


@pytest.fixture(scope='module')
def machines(tmp_path_factory):
    """Two machines, for the tests of one file; they leave nothing behind."""
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    both = TwoMachines(tmp_path_factory.mktemp('machines'))
    yield both
    both.remove()
