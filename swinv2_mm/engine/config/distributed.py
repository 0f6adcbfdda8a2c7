"""What a launcher tells a process about its run."""

import os

_NUMBERS = {'pytorch': 'WORLD_SIZE', 'slurm': 'SLURM_NTASKS', 'mpi': 'OMPI_COMM_WORLD_SIZE'}

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
