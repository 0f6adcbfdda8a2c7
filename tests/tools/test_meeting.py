"""Machines that are told wrong numbers or addresses end with words, before anything is imported; others start torchrun.

Both "machines" are processes on this one; tests/engine/runs/test_two_machines.py has two networks.
"""

import re
import socket
import subprocess
import sys

import pytest
from support import ROOT, load_script


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


@pytest.fixture
def start(port, tmp_path):
    """Start the tool, with a torchrun that prints its arguments; kills what is left."""
    package = tmp_path / 'torch' / 'distributed'
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / '__init__.py').touch()
    (package / 'run.py').write_text("def main(arguments):\n    print('torchrun', *arguments)\n")
    started = []

    def run(rank, nodes=2, address='127.0.0.1', seconds='30', port=port):
        place = f'--nnodes={nodes}', f'--node-rank={rank}', f'--master-addr={address}', f'--master-port={port}'
        process = subprocess.Popen(
            [sys.executable, ROOT / 'tools' / 'meeting.py', *place, '--nproc-per-node=2', 'train.py', '--help'],
            env={'PYTHONPATH': f'{tmp_path}:{ROOT}', 'MEETING_TIMEOUT': seconds},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def ends(process, code=2):
    """What a process prints until it ends, which it does with this code, without a traceback."""
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code and 'Traceback' not in errors, errors
    return output + errors


def test_machines_that_meet_start_torchrun(start, port):
    """In any order. Bug: torchrun gets other arguments, or those of its script are taken for ours."""
    later = [start(1, 3), start(2, 3)]
    for place, process in enumerate([start(0, 3), *later]):
        numbers = f'--nnodes=3 --node-rank={place} --master-addr=127.0.0.1 --master-port={port}'
        assert f'torchrun {numbers} --nproc-per-node=2 train.py --help\n' in ends(process, 0)


def test_a_machine_that_is_started_again_is_no_second_one(start):
    """Bug: whoever stops a machine and corrects its command is told that there are two of its number."""
    first, second = start(0, 3), start(1, 3)
    while 'NODE_RANK 2' not in first.stderr.readline():
        pass  # both have met
    second.kill()
    again, third = start(1, 3), start(2, 3)
    for process in (first, again, third):
        assert 'torchrun' in ends(process, 0)


@pytest.mark.parametrize(
    ('nodes', 'ranks', 'reason'),
    [
        ([3, 3, 3], [0, 1, 1], 'NODE_RANK=1 on .* and on .*: each machine has its own, from 0 to 2'),
        ([3, 2], [0, 1], 'NNODES=2 on .* and 3 on '),
    ],
    ids=['twice', 'nnodes'],
)
def test_machines_that_cannot_be_of_one_run_end_at_once(nodes, ranks, reason, start):
    """Bug: two processes of one rank wait for the others until a time-out of gloo; or some machines go on waiting."""
    for process in [start(rank, number) for number, rank in zip(nodes, ranks, strict=True)]:
        assert re.search(reason, ends(process))


def test_a_missing_machine_is_named(start, port):
    """Bug: torchrun's ``Timed out after 901 seconds waiting for clients. 1/2 clients joined``."""
    said = ends(start(0, seconds='1'))
    assert f'NODE_RANK 1 did not come to MASTER_ADDR=127.0.0.1, PORT={port} within 1 s' in said
    said = ends(start(1, seconds='1'))
    assert 'NODE_RANK 0 did not answer' in said and 'Connection refused' in said


def test_wrong_settings_end_at_once(start, port):
    assert 'numbered from 0 to 1' in ends(start(2))
    assert 'MASTER_ADDR=no.such.host is unknown' in ends(start(1, address='no.such.host'))
    assert 'MEETING_TIMEOUT=soon is no number' in ends(start(0, seconds='soon'))
    with socket.create_server(('', port)):
        assert f'port {port} of ' in ends(start(0))


def test_a_stranger_on_the_port_is_no_machine(start, port):
    """Bug: whoever scans ports ends the run, or takes the place of a machine."""
    first = start(0)
    first.stderr.readline()  # it listens
    with socket.create_connection(('127.0.0.1', port)) as stranger:
        stranger.sendall(b'GET / HTTP/1.1\n\n')
        second = start(1)
        assert 'torchrun' in ends(second, 0) and 'torchrun' in ends(first, 0)


def test_a_first_machine_that_reaches_itself_is_no_second_one():
    """Where addresses are translated on the way. Bug: it is told that another machine has its number."""
    meeting = load_script(ROOT / 'tools' / 'meeting.py')
    place = {'node_rank': 0, 'nnodes': 2, 'host': 'node0'}
    for who, expected in ((meeting.ME, None), ('another', place | {'id': 'another'})):
        here, there = socket.socketpair()
        with here, there:
            meeting.send(there, place | {'id': who})
            assert meeting.read_introduction(here) == expected
