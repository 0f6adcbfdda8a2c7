"""Mistakes of the user, and how a command line speaks of them."""

import os
import signal
import sys
from typing import TextIO


class UserError(Exception):
    """Something that the person at the keyboard can put right; the message names what, and how."""


class Stopped(KeyboardInterrupt):  # which data workers leave quietly on
    """The process was told to end, by a signal.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
        self.remedy = ''

    def __str__(self) -> str:
        return f'stopped by {signal.Signals(self.number).name}. {self.remedy}'.strip()


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, on stderr by default; of the processes of one machine, the first speaks for all."""
    if is_first():
        print(line, file=file or sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this process is alone, or the first that a launcher started on this machine."""
    return not is_launched() or next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), '0') == '0'


def is_launched() -> bool:
    """Whether a launcher started this process, as one of several."""
    return any(argument.startswith('--launcher') for argument in sys.argv)


_LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
