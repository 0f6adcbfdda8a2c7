"""Mistakes of the user, and how a command line reports them."""

import os
import re
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO


class UserError(Exception):
    """A mistake that the user can correct; the message names it and the remedy."""


class Stopped(KeyboardInterrupt):  # data workers end quietly on it
    """A signal, by its number, told the process to end."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number
        self.remedy = ''

    def __str__(self) -> str:
        return f'stopped by {signal.Signals(self.number).name}. {self.remedy}'.strip()


class ToldToEnd(Exception):
    """A run was told to end, and has saved; the message says where it goes on."""


def say(line: str, file: TextIO | None = None) -> None:
    """Print a line, on stderr by default; of the processes on one machine, only the first prints."""
    if is_first():
        print(line, file=file or sys.stderr, flush=True)


def is_first() -> bool:
    """Whether this process is alone, or the first that a launcher started on this machine."""
    return not is_launched() or next((os.environ[name] for name in _LOCAL_RANKS if name in os.environ), '0') == '0'


def is_launched() -> bool:
    """Whether a launcher started this process, as one of several."""
    launchers = re.findall(r'(?:^|\s)--launcher[=\s](\S+)', ' '.join(sys.argv))
    return launchers != [] and launchers[-1] != 'none'


def did_you_mean(names: Iterable[str]) -> str:
    """Suggest names in the place of a wrong one; empty without any."""
    names = list(names)
    return f' Did you mean {" or ".join(names)}?' if names else ''


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    return ', '.join(map(str, names[:most])) + (f' and {len(names) - most} more' if len(names) > most else '')


_LOCAL_RANKS = ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK')
