"""What a launcher tells a process about its run, and what follows for its network."""

import fcntl
import os
import socket
import struct
from contextlib import suppress

_NUMBERS = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}
_SIOCGIFADDR = 0x8915  # Linux: the address of an interface

_RANKS = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')


def number_of_processes(launcher: str) -> int:
    """Processes of this run, before they have met; 1 with the launcher ``'none'``."""
    return int(os.environ.get(_NUMBERS.get(launcher, ''), 1))


def rank_of_process() -> int:
    """The rank that a launcher gave this process; 0 without a launcher."""
    return int(next((os.environ[name] for name in _RANKS if name in os.environ), 0))


def this_run() -> str | None:
    """torchrun's name of this run, the same after a restart; None without torchrun or without a name."""
    name = os.environ.get('TORCHELASTIC_RUN_ID', 'none')
    return None if name == 'none' else name


def on_several_machines() -> bool:
    """Whether a launcher has started processes of this run on other machines, too."""
    everywhere = os.environ.get('WORLD_SIZE', '1')
    return int(everywhere) > int(os.environ.get('LOCAL_WORLD_SIZE', everywhere))


def address_here() -> str | None:
    """The address of this machine in the network in which the first one is; None if it has no route there."""
    with suppress(OSError):
        places = socket.getaddrinfo(os.environ.get('MASTER_ADDR', ''), 9, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, place = places[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # sends nothing
            return probe.getsockname()[0]
    return None


def interface_of(address: str) -> str | None:
    """The network interface that has an IPv4 address first; None if there is none, or off Linux."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack('256s', name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None
