"""What a run logs for its file alone: the environment, the config, the hooks and the settings of every parameter."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from mmengine.logging import MMLogger

# How mmengine begins what it logs by the hundred lines, without the line breaks and dashes in front.
_DUMPS = ('System environment:', 'Config:', 'Hooks will be executed in the following order:', 'paramwise_options -- ')


@contextmanager
def dumps_in_file_only() -> Iterator[None]:
    """Build loggers, as mmengine's runners do, that keep mmengine's dumps off the screen from the start.

    The runners write the first ones as soon as they have a logger: afterwards is too late.
    """
    build = MMLogger.__init__

    @wraps(build)
    def build_quiet(self: MMLogger, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        for handler in self.handlers:
            if type(handler) is logging.StreamHandler:  # a FileHandler is one, too
                handler.addFilter(_is_no_dump)

    MMLogger.__init__ = build_quiet
    try:
        yield
    finally:
        MMLogger.__init__ = build


def _is_no_dump(record: logging.LogRecord) -> bool:
    return record.levelno != logging.INFO or not str(record.msg).lstrip('\n-').startswith(_DUMPS)
