#!/usr/bin/env python
"""Let the machines of a run find each other, then start torchrun on each; launch.sh calls it.

torchrun alone waits in silence for a machine with a wrong number or address, and ends with a traceback. Only the
standard library is imported before all are there, so that a mistake is told at once.
"""

import json
import os
import secrets
import select
import socket
import sys
import time
from argparse import ArgumentParser
from dataclasses import dataclass
from typing import NoReturn

from swinv2_mm.errors import UserError

PATIENCE = 5  # seconds for one attempt to connect, or for one line
HERE = socket.gethostname()
ME = secrets.token_hex(4)  # a machine that asks for the first one may reach itself


@dataclass
class Place:
    """What this machine is told about the run."""

    nnodes: int
    node_rank: int
    master_addr: str
    master_port: int

    @property
    def words(self) -> str:
        return f'MASTER_ADDR={self.master_addr}, PORT={self.master_port}'

    @property
    def address(self) -> tuple[str, int]:
        return self.master_addr, self.master_port


def meet(place: Place, seconds: float) -> str:
    """Wait until all machines are there, at most so many seconds.

    Returns:
        The address of the first machine; on that machine itself, the one by which the others reach it.

    Raises:
        UserError: A machine did not come, or has the number of another.
    """
    if not 0 <= place.node_rank < place.nnodes:
        raise UserError(f'NODE_RANK={place.node_rank}: machines are numbered from 0 to {place.nnodes - 1}, see NNODES.')
    try:
        family = socket.getaddrinfo(*place.address, type=socket.SOCK_STREAM)[0][0]
    except socket.gaierror as error:
        raise UserError(f'MASTER_ADDR={place.master_addr} is unknown on {HERE} ({error.strerror}).') from None
    if place.node_rank:
        return report_to_first(place, seconds)
    astray = ''
    if not is_mine(place.master_addr, family):  # right only if addresses are translated on the way
        astray = f' MASTER_ADDR={place.master_addr} is no address of {HERE}, although NODE_RANK=0 says so.'
        say(f'warning:{astray}')
        ask_the_other_first(place)
    try:
        server = socket.create_server(('', place.master_port), family=family)
    except OSError as error:
        raise UserError(
            f'port {place.master_port} of {HERE} cannot be used ({error.strerror}). Pass another PORT on all machines.'
        ) from None
    with server:
        return wait_for_all(place, server, seconds, astray)


def is_mine(address: str, family: int) -> bool:
    """Whether an address belongs to this machine."""
    with socket.socket(family) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def ask_the_other_first(place: Place) -> None:
    """Ask whoever is at MASTER_ADDR: another machine with this number says so."""
    try:
        introduce(place, PATIENCE)
    except (OSError, ValueError):
        pass


def introduce(place: Place, seconds: float) -> None:
    """Tell the first machine who this is, and wait for its word."""
    with socket.create_connection(place.address, timeout=PATIENCE) as connection:
        send(connection, {'node_rank': place.node_rank, 'nnodes': place.nnodes, 'host': HERE, 'id': ME})
        connection.settimeout(seconds)
        answer = json.loads(connection.makefile().readline())
    if not isinstance(answer, dict):
        raise ValueError('another program answers there')
    if 'error' in answer:
        raise UserError(answer['error'])


def report_to_first(place: Place, seconds: float) -> str:
    """As any machine but the first: find the first one."""
    until, problem = time.monotonic() + seconds, ''
    while (left := until - time.monotonic()) > 0:
        try:
            introduce(place, left + PATIENCE)  # the first one may have come later
            return place.master_addr
        except (OSError, ValueError) as error:  # it is not there yet, or ended
            if not problem:
                say(f'waiting for NODE_RANK 0 at {place.words}')
            problem = getattr(error, 'strerror', None) or str(error)
        time.sleep(1)
    raise UserError(
        f'NODE_RANK 0 did not answer {HERE} at {place.words} within {seconds:g} s ({problem}). Is a machine started '
        'with NODE_RANK=0, is this its address, and does a firewall let the port through?'
    )


def wait_for_all(place: Place, server: socket.socket, seconds: float, astray: str) -> str:
    """As the first machine: wait for the others, then tell them to start, or what is wrong."""
    until, address, said = time.monotonic() + seconds, place.master_addr, []
    there: dict[int, tuple[socket.socket, str]] = {}
    while missing := sorted({*range(1, place.nnodes)} - there.keys()):
        names = f'NODE_RANK {", ".join(map(str, missing))}'
        if said != missing:
            say(f'waiting for {names} at {place.words}')
            said = missing
        connections, left = [connection for connection, _ in there.values()], max(until - time.monotonic(), 0)
        ready = select.select([server, *connections], [], [], min(left, 1) if astray else left)[0]
        if not ready and astray and left:
            ask_the_other_first(place)
        elif not ready:
            end_all(
                connections,
                f'{names} did not come to {place.words} within {seconds:g} s. Start each of the NNODES={place.nnodes} '
                f'machines with its own NODE_RANK, and with the same NNODES, MASTER_ADDR and PORT.{astray}',
            )
        # Who waits says nothing: it has ended, and may come again.
        there = {number: one for number, one in there.items() if one[0] not in ready}
        if server in ready:
            connection, _ = server.accept()
            connection.settimeout(PATIENCE)
            one = read_introduction(connection)
            if one is not None:
                check(one, place, there, connection)
                there[one['node_rank']] = connection, one['host']
                address = connection.getsockname()[0]
    for connection, _ in there.values():
        send(connection, {})
    return address


def read_introduction(connection: socket.socket) -> dict | None:
    """Read who has come; None if it is no machine of a run."""
    try:
        one = json.loads(connection.makefile().readline())
        return one if one.keys() == {'node_rank', 'nnodes', 'host', 'id'} and one['id'] != ME else None
    except (OSError, ValueError, AttributeError):
        return None


def check(one: dict, place: Place, there: dict, connection: socket.socket) -> None:
    """End all machines if the one that has come cannot belong to them."""
    number, name = one['node_rank'], one['host']
    reason = ''
    if one['nnodes'] != place.nnodes:
        reason = f'NNODES={one["nnodes"]} on {name} and {place.nnodes} on {HERE}: it is the same on all machines.'
    elif number == 0 or number in there:
        other = there[number][1] if number in there else HERE
        reason = f'NODE_RANK={number} on {other} and on {name}: each machine has its own, from 0 to {place.nnodes - 1}.'
    if reason:
        end_all([connection, *(connection for connection, _ in there.values())], reason)


def end_all(connections: list[socket.socket], reason: str) -> NoReturn:
    for connection in connections:
        send(connection, {'error': reason})
    raise UserError(reason)


def send(connection: socket.socket, words: dict) -> None:
    try:
        connection.sendall(json.dumps(words).encode() + b'\n')
    except OSError:
        pass  # it has ended, which torchrun will tell


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    for name, kind in (('--nnodes', int), ('--node-rank', int), ('--master-addr', str), ('--master-port', int)):
        parser.add_argument(name, type=kind, required=True)
    place = Place(**vars(parser.parse_args(sys.argv[1:5])))  # the rest is torchrun's
    try:
        seconds = float(os.environ.get('MEETING_TIMEOUT') or 600)
        address = meet(place, seconds)
    except UserError as error:
        say(f'error: {error}')
        return 2
    except ValueError:
        say(f'error: MEETING_TIMEOUT={os.environ["MEETING_TIMEOUT"]} is no number of seconds.')
        return 2
    except KeyboardInterrupt:
        return 130
    from torch.distributed.run import main as torchrun

    numbers = f'--nnodes={place.nnodes}', f'--node-rank={place.node_rank}'
    torchrun([*numbers, f'--master-addr={address}', f'--master-port={place.master_port}', *sys.argv[5:]])
    return 0


if __name__ == '__main__':
    sys.exit(main())
