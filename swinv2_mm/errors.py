"""Mistakes of the user, and how a command line speaks of them."""

import os
import sys
from typing import TextIO


class UserError(Exception):
    """Something that the person at the keyboard can put right; the message names what, and how."""


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, on stderr by default; of the processes of one machine, the first speaks for all."""
    if is_first():
        print(line, file=file or sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this process is alone, or the first that a launcher started on this machine."""
    launched = any(argument.startswith('--launcher') for argument in sys.argv)
    return not launched or next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), '0') == '0'


_LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
