"""Processes compare what they start from, and say which of the others do not answer."""

import os
import socket

import pytest
import torch
from mmengine.config import Config

from swinv2_mm.engine.runs import neighbours
from swinv2_mm.engine.runs.neighbours import Member, blamed_on_others, forget, meet, sample_of
from swinv2_mm.errors import UserError

CLOSED = (
    '[/__w/pytorch/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [10.0.0.2]:4711. This is typically '
    'caused by a remote worker crashing.'
)
LATE = '[/__w/pytorch/gloo/gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 8000ms for recv operation'


@pytest.fixture
def group(monkeypatch):
    """Be process 0 of a group; set ``group.others`` before they meet. Two of the others are on another machine."""

    class Group:
        others = []

    monkeypatch.setattr(torch.distributed, 'get_rank', lambda: 0)
    monkeypatch.setattr(neighbours, 'all_gather_object', lambda mine: [mine, *Group.others])
    monkeypatch.setattr(neighbours, '_one_folder', lambda: True)
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
    monkeypatch.setattr(neighbours, 'PATIENCE', 0.3)
    yield Group
    forget()


def test_processes_with_different_checkpoints_do_not_start(group, tmp_path):
    """Equal files under other names are equal. Bug: half of the machines resume, the others begin."""
    one, other = tmp_path / 'epoch_1.pth', tmp_path / 'a copy.pth'
    one.write_bytes(b'weights')
    other.write_bytes(b'weights')
    group.others = [Member(1, 'far', '10.0.0.2', 1, 'a copy.pth', sample_of(other))]
    meet(Config({'load_from': str(one)}))
    group.others += [Member(2, 'far', '10.0.0.2', 1, 'no checkpoint', None)]
    with pytest.raises(
        UserError, match=r'would start from different checkpoints: process 0 on .*process 2 on far .*no che'
    ):
        meet(Config({'load_from': str(one)}))
    other.write_bytes(b'weighty')
    group.others = [Member(1, 'far', '10.0.0.2', 1, 'a copy.pth', sample_of(other))]
    with pytest.raises(
        UserError, match=r'epoch_1\.pth \(0\.00 MB, written .*process 1 on far \(10\.0\.0\.2\) from a copy'
    ):
        meet(Config({'load_from': str(one)}))


def test_a_sample_sees_length_and_content(tmp_path):
    """Bug: files of other runs are taken for equal, since a part of them is; or all of 30 GB is read."""
    file = tmp_path / 'large'
    content = bytearray(10_100_000)  # the last bytes are in no block
    file.write_bytes(content)
    first = sample_of(file)
    content[5_000_000:5_300_000] = b'x' * 300_000
    file.write_bytes(content)
    second = sample_of(file)
    file.write_bytes(content + b'\0')
    assert len({first, second, sample_of(file)}) == 3
    content[100_000] = 1  # between two blocks
    file.write_bytes(content)
    assert sample_of(file) == second


def test_who_has_ended_is_named(group):
    """By asking each process, since gloo blames the neighbour. Bug: the wrong machine is searched for a message."""
    with socket.create_server(('127.0.0.1', 0)) as runs, socket.create_server(('127.0.0.1', 0)) as ends:
        ports = runs.getsockname()[1], ends.getsockname()[1]
        here = socket.gethostname()
        group.others = [Member(rank, here, '127.0.0.1', port, '', None) for rank, port in enumerate(ports, 1)]
        meet(Config())
        with pytest.raises(UserError, match=r'\(Connection closed by peer \[10\.0\.0\.2\]:4711\)\. All still run'):
            with blamed_on_others():
                raise RuntimeError(CLOSED)
        ends.close()
        with pytest.raises(UserError, match=f'On {here} \\(127.0.0.1\\) process 2 ended.*--resume.*dist_cfg.timeout'):
            with blamed_on_others():
                raise RuntimeError(LATE)


def test_a_machine_that_does_not_answer_is_named(group):
    """Bug: ``Timed out waiting 1800000ms for recv operation to complete``, and nobody knows whom for."""
    # An address for documentation: no host has it.
    group.others = [Member(rank, 'far', '192.0.2.99', 1, '', None) for rank in (1, 2)]
    meet(Config())
    with pytest.raises(UserError, match=r'far \(192\.0\.2\.99\) with processes 1, 2 does not answer'):
        with blamed_on_others():
            raise RuntimeError(LATE)


def test_before_they_have_met_the_interface_is_named(monkeypatch):
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'docker0')
    with pytest.raises(UserError, match=r'did not reach the others .*interface, here docker0.*GLOO_SOCKET_IFNAME'):
        with blamed_on_others():
            raise RuntimeError('Gloo connectFullMesh failed with [/a/pair.cc:152] timed out connecting: refused')


def test_a_lost_store_is_one_of_these_errors():
    """Its words are of many kinds."""
    lost = type('DistNetworkError', (RuntimeError,), {})
    with pytest.raises(UserError, match='got 0 bytes'):
        with blamed_on_others():
            raise lost('Failed to recv, got 0 bytes. Connection was likely closed.')


@pytest.mark.parametrize(
    'error', ['CUDA out of memory', 'gloo/pair.cc:1 op.preamble.length <= op.nbytes', 'DataLoader timed out after 5 s']
)
def test_other_errors_stay(error):
    """Bug: every error of a run is blamed on the network."""
    with pytest.raises(RuntimeError, match=error[:10]):
        with blamed_on_others():
            raise RuntimeError(error)


def test_data_workers_do_not_pass_for_their_process(group):
    """Bug: a killed process seems to run, because its data workers live on for some seconds."""
    meet(Config())
    port = neighbours._sign_of_life[0].getsockname()[1]
    (is_there, there), (ends, end) = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(end)
        os.write(there, b'!')
        os.read(ends, 1)
        os._exit(0)
    os.read(is_there, 1)
    forget()  # as if it was killed
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(('127.0.0.1', port))
    finally:
        os.close(end)
        os.waitpid(worker, 0)
