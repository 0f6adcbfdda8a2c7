"""Machine checks: say what is missing, and how to get it, before anything is downloaded."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from environment.messages import stop

GIB = 2**30
APT = 'On Debian and Ubuntu: apt-get install build-essential python3-dev'


def ask(command: Sequence[object]) -> tuple[int, str]:
    """Run a command; return its exit status and what it prints on both streams."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
    return done.returncode, done.stdout.strip() or 'no output'


def check_disk(needed_gib: float, where: Path, remedy: str) -> None:
    """Stop if fewer GiB are free in a folder."""
    free = shutil.disk_usage(where).free / GIB
    if free < needed_gib:
        stop(f'The setup needs about {needed_gib:g} GB in {where}, where {free:.1f} GB are free.\n{remedy}')


def check_compiler(include: str) -> None:
    """Stop unless a small extension that includes Python.h compiles and links."""
    command = shlex.split(os.environ.get('CXX', '')) or ['c++']  # as torch's build
    if shutil.which(command[0]) is None:
        stop(f'mmcv must be compiled, and there is no C++ compiler ({command[0]}).\n{APT}')
    with tempfile.TemporaryDirectory() as temp:
        source = Path(temp, 'probe.cpp')
        source.write_text('#include <vector>\n#include <Python.h>\nint probe() { return std::vector<int>(1)[0]; }\n')
        status, said = ask([*command, '-shared', '-fPIC', f'-I{include}', source, '-o', f'{temp}/probe.so'])
    if status and 'Python.h' in said:
        stop(f'mmcv must be compiled, and Python.h is missing in {include}.\n{APT}')
    if status:
        stop(f'{command[0]} cannot compile a small C++ program: {said.splitlines()[-1]}\n{APT}')


def jobs() -> int:
    """Number of parallel compilers: one per core, but no more than fit into the memory with 1.5 GiB each."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / GIB
    return max(1, min(len(os.sched_getaffinity(0)), int(memory / 1.5)))
