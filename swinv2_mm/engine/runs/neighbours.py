"""The other processes of a run: where they are, whether all start from one checkpoint, and which do not answer."""

import os
import re
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch.distributed
from mmengine.config import Config
from mmengine.dist import all_gather_object, broadcast_object_list

from swinv2_mm.engine.config.distributed import address_here
from swinv2_mm.engine.config.parts import is_local
from swinv2_mm.engine.mmengine_internals import collect_by_messages
from swinv2_mm.errors import UserError, listed, say

PATIENCE = 3  # seconds in which a machine of the same network answers, or not
GONE, SILENT, RUNS = 'gone', 'silent', 'runs'
# What torch, gloo and NCCL say if another process is gone or late. Other errors of theirs are no matter of the network.
_OF_A_GROUP = re.compile(r'gloo|nccl|socket|store|clients joined', re.IGNORECASE)
_NO_ANSWER = re.compile(
    r'closed by peer|reset by peer|broken pipe|timed out|timeout|refused|unreachable|no route|remote process exit',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Member:
    """A process of the run."""

    rank: int
    host: str
    address: str  # to the others; '' if unknown
    port: int  # on which it listens as long as it runs, without ever answering
    checkpoint: str  # what it starts from, in words
    content: int | str | None  # equal for equal files

    @property
    def machine(self) -> str:
        return f'{self.host} ({self.address})' if self.address else self.host


# All processes, in the order of their ranks; empty without a group. As torch's group it belongs to the process.
_members: list[Member] = []
_sign_of_life: list[socket.socket] = []


def meet(cfg: Config) -> None:
    """Tell the other processes what this one starts from, as soon as all have joined.

    Raises:
        UserError: They would start from different checkpoints; the same error in each process.
    """
    address = address_here() or ''
    me = torch.distributed.get_rank(), socket.gethostname(), address, _listen()
    _members[:] = all_gather_object(Member(*me, *_start(cfg.get('load_from'))))
    if len({member.content for member in _members}) > 1:
        starts = {}
        for member in _members:
            starts.setdefault((member.machine, member.checkpoint), []).append(member.rank)
        raise UserError(
            'the processes would start from different checkpoints: '
            + '; '.join(f'{_named(ranks)} on {machine} from {start}' for (machine, start), ranks in starts.items())
            + '. Only the first process writes checkpoints. Without a shared file system, copy the one to go on from '
            'to every machine, and pass it to all of them: --resume CHECKPOINT. With one, start all machines in the '
            'same folder.'
        )
    if len({member.machine for member in _members}) > 1 and not _one_folder():
        say('The machines share no folder: results of a validation are sent, not written.')
        collect_by_messages()


def forget() -> None:
    """Forget the other processes, as this one has left them."""
    _members.clear()
    while _sign_of_life:
        _sign_of_life.pop().close()


def _listen() -> int:
    """Listen on a free port until this process ends: its kernel accepts who asks, whatever the process does."""
    if not _sign_of_life:
        _sign_of_life.append(socket.create_server(('', 0), backlog=4096))
        os.register_at_fork(after_in_child=forget)  # data workers live longer
    return _sign_of_life[0].getsockname()[1]


def _start(load_from: str | None) -> tuple[str, int | str | None]:
    """What a process starts from, in words, and something that is equal for equal files."""
    if not load_from:
        return 'no checkpoint', None
    path = Path(load_from).expanduser()
    if not is_local(load_from) or not path.is_file():
        return load_from, load_from
    saved = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(path.stat().st_mtime))
    return f'{load_from} ({path.stat().st_size / 1e6:.2f} MB, written {saved})', sample_of(path)


def sample_of(path: Path, blocks: int = 64, size: int = 1 << 16) -> int:
    """A checksum of the length of a file and of some blocks, evenly spaced: of all of a small one."""
    length = path.stat().st_size
    checksum = zlib.crc32(str(length).encode())
    with path.open('rb') as file:
        for start in range(0, length, max(size, length // blocks)):
            file.seek(start)
            checksum = zlib.crc32(file.read(size), checksum)
    return checksum


def _one_folder() -> bool:
    """Whether all processes see the current folder of the first one, where mmengine collects results in files."""
    mark = None
    if torch.distributed.get_rank() == 0:
        with suppress(OSError):
            handle, path = tempfile.mkstemp(prefix='.shared_', dir='.')
            os.close(handle)
            mark = Path(path).name
    name = [mark]
    broadcast_object_list(name)
    seen = all_gather_object(name[0] is not None and Path(name[0]).exists())
    if mark is not None:
        Path(mark).unlink()
    return all(seen)


@contextmanager
def blamed_on_others() -> Iterator[None]:
    """Raise a UserError that says who does not answer, in the place of an error of gloo, NCCL or a store."""
    try:
        yield
    except RuntimeError as error:
        of_a_store = type(error).__name__ in ('DistNetworkError', 'DistStoreError')  # not in all versions of torch
        if not of_a_store and not (_OF_A_GROUP.search(str(error)) and _NO_ANSWER.search(str(error))):
            raise
        raise UserError(_without_answer(str(error))) from error


def _without_answer(error: str) -> str:
    # Without the file of gloo's source, and without the advice and the stack of C++ that follow.
    reason = re.split(r'\. |\n', re.sub(r'\[\S+:\d+\] ', '', error))[0].rstrip('. ')
    if not _members:
        rank, number = os.environ.get('RANK', '?'), os.environ.get('WORLD_SIZE', '?')
        place = f'{os.environ.get("MASTER_ADDR", "?")}:{os.environ.get("MASTER_PORT", "?")}'
        interface = os.environ.get('GLOO_SOCKET_IFNAME') or f"that of this machine's name, {socket.gethostname()}"
        return (
            f'process {rank} of {number} did not reach the others ({reason}). They meet at {place} (MASTER_ADDR and '
            f'PORT) and connect over one network interface, here {interface}. See what the other machines say; if '
            'each waits for the others, name the interface of the network between them in GLOO_SOCKET_IFNAME and '
            'NCCL_SOCKET_IFNAME, on each machine (`ip -o address` lists them), and open all its ports.'
        )
    me = _members[torch.distributed.get_rank()]
    who = _who_is_lost(me) or (
        'All still run, so one hangs or is busy, or the network was down: see what the others say.'
    )
    return (
        f'process {me.rank} of {len(_members)}, on {me.machine}, lost the others ({reason}). {who} Then start the run '
        'again on all machines, a training with --resume: it goes on from its last checkpoint. A process waits for '
        'the others as many seconds as env_cfg.dist_cfg.timeout says.'
    )


def _who_is_lost(me: Member) -> str:
    """A sentence for each machine of which processes have ended, or which does not answer; empty if all run."""
    others = [member for member in _members if member != me]
    for _ in range(2):
        with ThreadPoolExecutor(32) as pool:
            states = list(pool.map(_state, others))
        if {*states} != {RUNS}:
            break
        time.sleep(1)  # one that is ending closes its connections first
    lost: dict[tuple[str, str], list[int]] = {}
    for member, state in zip(others, states, strict=True):
        lost.setdefault((member.machine, state), []).append(member.rank)
    sentences = [
        f'On {machine} {_named(ranks)} ended: see the message there.'
        if state == GONE
        else f'{machine} with {_named(ranks)} does not answer: it is down, or the network is.'
        for (machine, state), ranks in lost.items()
        if state != RUNS
    ]
    return ' '.join(sentences[:5])


def _state(member: Member) -> str:
    """Whether another process runs: its machine accepts a connection for it, refuses one, or is not reached."""
    address = member.address
    if address.startswith('127.') and member.host != socket.gethostname():  # how the first machine knows itself
        address = os.environ['MASTER_ADDR']
    try:
        socket.create_connection((address, member.port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return GONE
    except OSError:
        return SILENT
    return RUNS


def _named(ranks: list[int]) -> str:
    return f'process{"es" if len(ranks) > 1 else ""} {listed(ranks, 8)}'
