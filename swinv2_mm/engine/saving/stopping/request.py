"""What tells a run to end after its iteration: SIGUSR1, SIGTERM, a time limit, or the script that started it."""

import math
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from swinv2_mm.errors import UserError

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
TIME_IS_UP = signal.SIGALRM  # the number by which processes tell each other of --max-time
# A folder that tools/launch.sh shares with its processes, since torchrun passes on neither SIGUSR1 nor exit codes: the
# script writes the number of a signal into the file `told`, and the run creates the file `requeue` when it has saved.
SHARED = 'SWINV2_MM_SHARED'
_SECONDS = 2.0  # Slurm and torchrun may both pass on one signal; a second one comes later


class Request:
    """Whether this process was told to end, and by what."""

    def __init__(self) -> None:
        self.number, self.deadline, self.process = 0, math.inf, os.getpid()
        self.since = 0.0
        self.former: dict[int, Any] = {}

    def listen(self, *numbers: int) -> None:
        """Note these signals from now on; a second one, two seconds after the first, does what it did before."""
        self.process = os.getpid()
        self.former |= {number: signal.signal(number, self._note) for number in numbers}

    def forget(self) -> None:
        """Undo all of it."""
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.__init__()

    def reason(self) -> int:
        """The signal that told this process to end, ``TIME_IS_UP``, or 0."""
        if not self.number and time.monotonic() >= self.deadline:
            self.number = TIME_IS_UP
        if not self.number and (folder := os.environ.get(SHARED)):
            with suppress(FileNotFoundError, ValueError):
                self.number = int(Path(folder, 'told').read_text())
                self.since = time.monotonic()
        return self.number

    def _note(self, number: int, frame: object = None) -> None:
        if os.getpid() != self.process:
            return  # a data worker
        if self.number not in SIGNALS:
            self.number, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > _SECONDS:
            signal.signal(number, self.former.get(number, signal.SIG_DFL))
            os.kill(self.process, number)


REQUEST = Request()


@contextmanager
def listening(deadline: float = math.inf) -> Iterator[None]:
    """Note SIGUSR1 and SIGTERM during a training, and the time limit: a value of ``time.monotonic()``."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can take signals
        return
    before, REQUEST.deadline = {**REQUEST.former}, deadline
    REQUEST.listen(*(number for number in SIGNALS if number not in before))
    try:
        yield
    finally:
        REQUEST.forget()


def seconds(text: str) -> float:
    """Read a duration as ``--max-time`` has it: 11:50:00, 1-12:00:00 (with days, as Slurm's) or 11h50m."""
    clock = re.fullmatch(r'(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)', text)
    units = re.fullmatch(r'(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?', text)
    found = clock or (units if text else None)
    if found is None:
        raise UserError(f'--max-time {text}: give hours, minutes and seconds, as in 11:50:00 or 11h50m.')
    return sum(int(part or 0) * unit for part, unit in zip(found.groups(), (86400, 3600, 60, 1), strict=True))
