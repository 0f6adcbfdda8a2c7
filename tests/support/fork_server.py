"""An interpreter that has imported everything and forks each run of tools/train.py: a start, or a death, costs nothing.

Reads requests from stdin, answers on stdout, as lines of JSON; see :class:`tiny_fixtures.ForkServer`. A run counts what
it does: hooks that it calls, and files of its work dir that it opens, flushes, renames or removes. It can be told to
send itself a real signal in front of the n-th of these; after a SIGKILL, a file that it would flush is half written.
"""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import mmengine.config.config
import mmengine.runner.runner
import torch
from mmengine.runner import Runner

import support.tiny_training  # noqa: F401
from support.tiny_fixtures import load_tool
from swinv2_mm.engine import runs  # noqa: F401
from swinv2_mm.engine.runs.command_line import end_process, exit_code

FILES = ('open', 'os.rename', 'os.remove')


def count(work_dir: str, end: int | None, number: int) -> Callable[[], int]:
    """Count what this process does from now on, and send it a signal in front of event number ``end``."""
    process, done = os.getpid(), 0
    fsync, call_hook = os.fsync, Runner.call_hook

    def happens(last_words: object = lambda: None) -> None:
        nonlocal done
        if os.getpid() != process:
            return  # a data worker
        done += 1
        if done - 1 == end:
            if number == signal.SIGKILL:
                last_words()
            os.kill(process, number)

    def audit(event: str, arguments: tuple) -> None:
        if event in FILES and work_dir in str(arguments[0]):
            happens()

    def flush(handle: int) -> None:
        path = os.readlink(f'/proc/self/fd/{handle}')
        happens(lambda: os.path.isfile(path) and os.truncate(path, os.path.getsize(path) // 2))
        fsync(handle)

    def hook(runner: Runner, *args: object, **kwargs: object) -> None:
        happens()
        call_hook(runner, *args, **kwargs)

    sys.addaudithook(audit)
    os.fsync, Runner.call_hook = flush, hook
    return lambda: done


def child(request: dict, local_rank: int, port: int) -> None:
    os.setsid()  # with a group of processes of its own, as torchrun's
    rank, world = request['first_rank'] + local_rank, request['world'] or request['processes']
    output = os.open(f'output_{local_rank}', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    arguments = request['arguments']
    os.environ.update(request['environment'])
    if world > 1:
        arguments = [*arguments, '--launcher', 'pytorch']
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(local_rank),
            WORLD_SIZE=str(world),
            LOCAL_WORLD_SIZE=str(request['processes']),
            MASTER_ADDR=request['address'],
            MASTER_PORT=str(request['port'] or port),
        )
    sys.argv = ['tools/train.py', *arguments]
    end = request['at'] if local_rank == request['rank'] else None
    counted = count(request['work_dir'], end, request['signal'])
    code = exit_code(load_tool('train').main, arguments)
    Path(f'events_{local_rank}').write_text(str(counted()))
    end_process(code)


def runs_on(group: int) -> bool:
    """Whether a group has a process that has not ended; one that only waits for init to take notice has."""
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with suppress(ProcessLookupError, FileNotFoundError):  # it ended meanwhile
            state, _, of = stat.read_text().rpartition(')')[2].split()[:3]
            if int(of) == group and state not in 'ZX':
                return True
    return False


def answer(request: dict) -> dict:
    os.chdir(request['folder'])
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for output in Path().glob('output_*'):
        output.unlink()
    processes = {}
    for rank in range(request['processes']):
        pid = os.fork()
        if pid == 0:
            try:
                child(request, rank, port)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        processes[pid] = rank
    codes, left = {}, []
    while processes:
        pid, status = os.wait()
        codes[processes.pop(pid)] = code = os.waitstatus_to_exitcode(status)
        if runs_on(pid):
            left.append(pid)
        if code:  # what a launcher does
            for other in processes:
                os.kill(other, signal.SIGKILL)  # its data workers notice
    output = ''.join(Path(f'output_{rank}').read_text()[-3000:] for rank in codes)
    return {'codes': [codes[rank] for rank in sorted(codes)], 'output': output, 'left': left}


def main() -> None:
    torch.set_num_threads(1)
    # Most of the time would go into layout of the config's text, and into asking compilers for their versions.
    mmengine.config.config.FormatCode = lambda text, **_: (text, True)
    mmengine.runner.runner.collect_env = dict
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == '__main__':
    main()
