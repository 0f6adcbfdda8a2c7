"""Progress of the setup: numbered steps, and the time left while mmcv is compiled."""

import re
import shutil
import sys
import time


def minutes(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds > 600 else '{}:{:02d} min'.format(*divmod(round(seconds), 60))


def roughly(seconds: float) -> str:
    """An estimate, rounded to its precision."""
    if seconds < 55:
        return f'{max(round(seconds, -1), 10):.0f} s'
    count = max(round(seconds / 60), 1)
    return f'{count} minute{"s" * (count > 1)}'


class BuildProgress:
    """Read ninja's ``[k/n]`` lines: files done, and the time left.

    Args:
        guess: Expected seconds of the whole build, used until enough files are done to measure.
        window: Number of recent files that the pace is measured over.
    """

    LINE = re.compile(r'^\s*(?:DEBUG )?\s*\[(\d+)/(\d+)\]\s')

    def __init__(self, guess: float, window: int = 20) -> None:
        self.guess, self.window = guess, window
        self.total = 0
        self.times: list[float] = []

    @property
    def done(self) -> int:
        return len(self.times)

    def feed(self, line: str, now: float) -> None:
        """Take one line of the build's output, ``now`` seconds after the build began."""
        if found := self.LINE.match(line):
            count, self.total = int(found.group(1)), int(found.group(2))
            self.times += [now] * (count - self.done)

    def left(self, now: float) -> float:
        """Seconds left, from the pace of the last files."""
        if self.done < 6:
            return max(self.guess - now, 0)
        recent = self.times[-self.window - 1 :]
        pace = (max(now, recent[-1]) - recent[0]) / len(recent)
        return pace * (self.total - self.done)

    def text(self, now: float) -> str:
        """One short line for people."""
        if not self.total:
            return 'preparing'
        if self.done >= self.total:
            return f'{self.total} of {self.total} files, linking'
        return f'{self.done} of {self.total} files, about {roughly(self.left(now))} left'


class Screen:
    """Print numbered steps with their time. A terminal shows a live line, a log a plain line every 20 seconds."""

    PLAIN_EVERY = 20

    def __init__(self, steps: int) -> None:
        self.live, self.steps = sys.stdout.isatty(), steps
        self.number, self.title, self.began, self.said = 0, '', 0.0, 0.0

    def step(self, title: str) -> None:
        self.number += 1
        self.title, self.began, self.said = title, time.monotonic(), time.monotonic()
        if not self.live:
            print(f'[{self.number}/{self.steps}] {title}', flush=True)
        self.tick('')

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def tick(self, note: str) -> None:
        if self.live:
            line = f'[{self.number}/{self.steps}] {self.title} ... {minutes(self.elapsed())}{note and ", " + note}'
            print('\r\033[K' + line[: shutil.get_terminal_size().columns - 1], end='', flush=True)
        elif note and time.monotonic() - self.said >= self.PLAIN_EVERY:
            self.said = time.monotonic()
            print(f'      {minutes(self.elapsed())}: {note}', flush=True)

    def say(self, text: str) -> None:
        print('\r\033[K' * self.live + f'      {text}', flush=True)

    def end(self, note: str = '') -> None:
        if self.live:
            print(f'\r\033[K[{self.number}/{self.steps}] {self.title}')
        print(f'      {minutes(self.elapsed())}{note and ": " + note}', flush=True)
