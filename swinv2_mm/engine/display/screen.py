"""Log messages for the log file only: environment, config, hooks and the settings of every parameter."""

import logging
from contextlib import AbstractContextManager

from swinv2_mm.engine.mmengine_internals import filtered_screen

# How mmengine begins messages of hundreds of lines, after line breaks and dashes.
_DUMPS = ('System environment:', 'Config:', 'Hooks will be executed in the following order:', 'paramwise_options -- ')


def dumps_in_file_only() -> AbstractContextManager[None]:
    """Keep mmengine's dumps off the screen, for the loggers that runners build in this context."""
    return filtered_screen(_is_no_dump)


def _is_no_dump(record: logging.LogRecord) -> bool:
    return record.levelno != logging.INFO or not str(record.msg).lstrip('\n-').startswith(_DUMPS)
