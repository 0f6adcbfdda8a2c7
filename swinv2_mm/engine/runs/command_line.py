"""Shared parts of the command lines: arguments, ``--cfg-options``, errors as one paragraph, exit codes."""

import atexit
import os
import signal
import sys
import time
import traceback
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmengine.config import DictAction

from swinv2_mm.engine.config.distributed import rank_of_process
from swinv2_mm.engine.saving.stopping.request import REQUEST, SHARED, SIGNALS
from swinv2_mm.errors import Stopped, ToldToEnd, UserError, is_first, is_launched, say

# "Temporary failure: try again", of sysexits.h. Schedulers have no code of their own for it; this one has a name, and
# neither Python nor a signal nor `timeout` ends a process with it.
REQUEUE = os.EX_TEMPFAIL


class Parser(ArgumentParser):
    """An argument parser that raises :class:`UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message}. {self.prog} --help explains the arguments.')


class ConfigOptions(DictAction):
    """``--cfg-options key=value ...``, in mmengine's syntax for values."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        for value in values:
            key, equals, _ = value.partition('=')
            if not equals or not all(key.split('.')):
                raise UserError(
                    f'{option_string} {value}: expected key=value, as in train_cfg.max_epochs=12. Put the other '
                    'arguments in front.'
                )
            try:
                super().__call__(parser, namespace, [value], option_string)
            except AssertionError:
                raise UserError(
                    f"{option_string} {value}: the brackets do not match. Quote lists, as in 'key=[(1,2),(3,4)]'."
                ) from None


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that ``tools/train.py`` and ``tools/test.py`` share."""
    parser.add_argument('--work-dir', metavar='DIR', help='for checkpoints and logs; default work_dirs/<config>')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help="change the config, as in train_cfg.max_epochs=12 'model.backbone.out_indices=(1,2,3)'",
    )
    parser.add_argument('--compile', action='store_true', help='compile the backbone, by torch.compile')
    parser.add_argument('--tf32', action='store_true', help='multiply float32 matrices in TF32, on GPUs since Ampere')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')


def with_value(argv: Sequence[str], option: str, values: Container[str], default: str) -> list[str]:
    """Write out an option's default unless one of its values follows: argparse would take the config for a value."""
    followers = [*argv, None][1:]
    return [
        f'{option}={default}' if argument == option and follower not in values else argument
        for argument, follower in zip(argv, followers, strict=True)
    ]


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Parse a command line into keyword arguments."""
    arguments = vars(parser.parse_args(argv))
    local_rank = arguments.pop('local_rank')
    if arguments['launcher'] == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    return arguments


def exit_code(command: Callable[[Sequence[str] | None], None], argv: Sequence[str] | None = None) -> int:
    """Run a command and return 0, 2 after a UserError, ``REQUEUE`` where a run was told to end and is to go on, or 128
    and the number of a signal; these are said on stderr."""

    def stop(number: int, frame: object) -> NoReturn:
        raise Stopped(number)

    # mmengine causes this warning; a user cannot act on it.
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated', category=UserWarning)
    # While a launcher's process waits for another one, Python's handlers would not run: a signal ends it at once.
    handler = signal.SIG_DFL if is_launched() else stop
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, *SIGNALS)}
    if is_launched():
        REQUEST.listen(signal.SIGUSR1)  # before the training can, other processes would wait for this one
    try:
        command(argv)
    except UserError as error:
        if not is_first():
            # The first process reports the same within this time, and then the launcher ends all of them.
            time.sleep(10)
        if os.environ.get('SWINV2_MM_TRACEBACK'):
            traceback.print_exception(error)
        print(f'error: {error}', file=sys.stderr, flush=True)
        return 2
    except ToldToEnd as told:
        say(f'{told} Exit code {REQUEUE}.')
        return requeue()
    except Stopped as stopped:
        print(stopped, file=sys.stderr, flush=True)
        return REQUEUE if stopped.number == signal.SIGUSR1 else 128 + stopped.number
    finally:
        for number, former in before.items():
            signal.signal(number, former)
    return 0


def requeue() -> int:
    """The exit code of a process whose run was told to end."""
    if folder := os.environ.get(SHARED):
        Path(folder, 'requeue').touch()
        return 0  # the script returns the code; torchrun would report, and restart, a failure
    if is_launched() and rank_of_process() > 0:
        return 0
    if is_launched():
        time.sleep(3)  # a launcher ends the others when one fails
    return REQUEUE


def end_process(code: int) -> NoReturn:
    """End this process without shutting down the interpreter, where a thread of gloo that frees a tensor would abort
    the process ("terminate called without an active exception"), and a data loader would wait for its workers."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
