"""Progress of the setup: numbered steps, and the time left while mmcv is compiled."""

import re
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
    """Print numbered steps with their time, and every 20 seconds a note on the current one."""

    EVERY = 20

    def __init__(self, steps: int) -> None:
        self.steps, self.number, self.began, self.said = steps, 0, 0.0, 0.0

    def step(self, title: str) -> None:
        self.number += 1
        self.began = self.said = time.monotonic()
        print(f'[{self.number}/{self.steps}] {title}', flush=True)

    def say(self, text: str) -> None:
        print(f'      {text}', flush=True)

    def tick(self, note: str) -> None:
        if note and time.monotonic() - self.said >= self.EVERY:
            self.said = time.monotonic()
            self.say(f'{minutes(self.said - self.began)}: {note}')

    def end(self, note: str = '') -> None:
        self.say(f'{minutes(time.monotonic() - self.began)}{note and ": " + note}')
