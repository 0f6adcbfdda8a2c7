"""Make ``.venv``: the pinned packages, mmcv compiled for the installed torch, and swinv2_mm itself.

Run by every ``make`` target that needs the environment; when nothing has changed it ends at once. It runs with the
system's Python, so it uses the standard library only, and syntax that parses on Python 3.6: an old Python gets the
message that says which one is needed.

Three decisions live here:

* A torch that somebody installed into ``.venv`` by hand (say, the build for an older driver) is kept, and mmcv is
  compiled again for it. ``rm -rf .venv && make setup`` returns to the pinned version.
* mmcv's compiled wheel is kept per torch, Python and machine, outside the repository. pip's own cache does not know
  which torch a wheel was compiled against.
* mmcv is compiled with torch's headers precompiled (tools/cxx_pch.py) and without debug symbols, which halves the time
  and leaves the optimisation level alone.
"""

import fcntl
import hashlib
import json
import os
import platform
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, NoReturn, Optional, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / '.venv'
STAMP = VENV / 'swinv2_mm.json'
LOG = VENV / 'setup.log'
MMCV = '2.1.0'
# What mmcv needs to be compiled, and to be tried afterwards (mmengine brings OpenCV and the like).
BEFORE_MMCV = ('numpy', 'setuptools', 'wheel', 'ninja', 'mmengine', 'packaging', 'pillow')
EXTRAS = '.[det,seg,tensorboard,test]'
STEPS = 6
SUPPORTED = ((3, 10), (3, 12))
GIB = 2**30
# What the environment and a build take, with some air. CUDA: torch's wheels unpack to 7 GiB.
VENV_GIB, VENV_CUDA_GIB, BUILD_GIB = 3, 12, 2
# CPU seconds of one file and of the precompiled header (gcc 12, a 2.6 GHz core); only for the estimate shown up front.
FILES, SECONDS_PER_FILE, SECONDS_HEADER, CUDA_FACTOR = 77, 4, 25, 8
# Memory that one compiler needs; nvcc's front end needs as much.
GIB_PER_JOB = 1.5


class SetupError(Exception):
    """Something is missing on this machine; the message says what, and how to get it."""


# --- what the machine must have --------------------------------------------------------------------------------------


def check_python(version: Sequence[int]) -> None:
    """Raise unless this Python is one that the pinned packages exist for."""
    low, high = SUPPORTED
    if not low <= tuple(version[:2]) <= high:
        raise SetupError(
            'Python {}.{} cannot be used: the packages need 3.{} to 3.{}.\n'
            'Install one of those and name it, for example: make setup PYTHON=python3.11'.format(
                version[0], version[1], low[1], high[1]
            )
        )


def find_python(names: Sequence[str] = ('python3.12', 'python3.11', 'python3.10')) -> Optional[str]:
    """A supported Python on the PATH that really starts (pyenv puts there what may not)."""
    for name in names:
        path = shutil.which(name)
        if path and subprocess.call([path, '-c', ''], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def check_venv(missing: Sequence[str], version: Sequence[int]) -> None:
    """Raise if one of the modules that make an environment is missing; Debian ships them in a package of their own."""
    if missing:
        raise SetupError(
            'Python {0}.{1} is here without its {2} module, so no environment can be made.\n'
            'On Debian and Ubuntu: apt-get install python{0}.{1}-venv'.format(version[0], version[1], missing[0])
        )


def missing_modules(names: Sequence[str] = ('venv', 'ensurepip')) -> List[str]:
    """Those of ``names`` that this Python cannot find."""
    from importlib.util import find_spec

    return [name for name in names if find_spec(name) is None]


def check_disk(free: int, needed_gib: float, where: Path, what: str, remedy: str) -> None:
    """Raise if ``free`` bytes are too few for ``what``."""
    if free < needed_gib * GIB:
        raise SetupError(
            '{} needs about {:g} GB in {}, where {:.1f} GB are free.\n{}'.format(
                what, needed_gib, where, free / GIB, remedy
            )
        )


def compiler_command(env: Dict[str, str]) -> List[str]:
    """The C++ compiler that torch's build will call."""
    return shlex.split(env.get('CXX', '')) or ['c++']


def check_compiler(compiler: List[str], include: str) -> str:
    """Compile and link a small extension that includes Python.h; raise with what is missing, else name the compiler."""
    install = 'On Debian and Ubuntu: apt-get install build-essential python3-dev'
    if shutil.which(compiler[0]) is None:
        raise SetupError('mmcv must be compiled, and there is no C++ compiler ({}).\n{}'.format(compiler[0], install))
    with tempfile.TemporaryDirectory() as temp:
        source = Path(temp, 'probe.cpp')
        source.write_text('#include <vector>\n#include <Python.h>\nint probe() { return std::vector<int>(1)[0]; }\n')
        output = str(Path(temp, 'probe.so'))
        call = [*compiler, '-shared', '-fPIC', '-I' + include, str(source), '-o', output]
        done = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = done.stdout.decode(errors='replace').strip()
        if 'Python.h' in said:
            raise SetupError('mmcv must be compiled, and Python.h is missing in {}.\n{}'.format(include, install))
        last = said.splitlines()[-1] if said else 'no output'
        raise SetupError('{} cannot compile a small C++ program: {}\n{}'.format(compiler[0], last, install))
    version = subprocess.run([*compiler, '-dumpfullversion', '-dumpversion'], stdout=subprocess.PIPE).stdout
    return '{} {}'.format(Path(compiler[0]).name, version.decode(errors='replace').strip().splitlines()[0])


def check_cuda_compiler(torch: 'Torch', nvcc: Optional[str]) -> None:
    """Raise if mmcv's GPU operations are wanted, and nvcc is absent or of another major version than torch's CUDA."""
    if not torch.compile_cuda:
        return
    wanted = 'the CUDA {} toolkit (https://developer.nvidia.com/cuda-downloads), with nvcc on PATH or CUDA_HOME set'
    wanted = wanted.format(torch.cuda)
    cpu_only = 'To do without the GPU: CUDA_VISIBLE_DEVICES= make setup'
    if nvcc is None:
        raise SetupError('There is a GPU, and no nvcc to compile mmcv for it. Install {}.\n{}'.format(wanted, cpu_only))
    if nvcc.split('.')[0] != torch.cuda.split('.')[0]:
        raise SetupError(
            'nvcc is of CUDA {}, and torch {} of CUDA {}: mmcv cannot be compiled for the GPU. Install {}.\n{}'.format(
                nvcc, torch.version, torch.cuda, wanted, cpu_only
            )
        )


# --- pip -------------------------------------------------------------------------------------------------------------

# What pip prints, and what it means; the first that matches is told.
PIP_FAILURES = (
    (
        r'No space left on device|Errno 28',
        'The disk is full. torch alone takes 1 GB, its CUDA build 7 GB; free some space and run `make setup` again.',
    ),
    (
        r'CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError',
        "The package index's certificate is not trusted here. Behind a company proxy give pip its certificate: "
        'pip config set global.cert /path/to/ca.pem',
    ),
    (
        r'ProxyError|407 Proxy',
        'The proxy refused the connection. Check HTTPS_PROXY.',
    ),
    (
        r'NewConnectionError|Failed to establish a new connection|name resolution|Name or service not known|'
        r'ConnectTimeoutError|ReadTimeoutError|Max retries exceeded|Connection refused|Network is unreachable|'
        r'NameResolutionError|RemoteDisconnected|ConnectionResetError|IncompleteRead|Connection broken',
        'The package index cannot be reached. Check the network; behind a proxy set HTTPS_PROXY, and for a mirror '
        'PIP_INDEX_URL. Then run `make setup` again: it continues where it stopped.',
    ),
    (
        r'No matching distribution found for (?P<what>\S+)',
        'The package index has no {what} for this machine ({machine}), or cannot be reached. Check the network; '
        'another Python may have one: make setup PYTHON=python3.11',
    ),
)


def explain_pip(output: str) -> str:
    """What is wrong and what to do, from what a failed pip printed."""
    for pattern, meaning in PIP_FAILURES:
        found = re.search(pattern, output)
        if found:
            machine = '{} {}, Python {}'.format(platform.system(), platform.machine(), platform.python_version())
            return meaning.format(machine=machine, **found.groupdict())
    errors = [line for line in output.splitlines() if line.strip().startswith(('ERROR', 'error:'))]
    return 'pip failed: {}'.format(errors[-1].strip() if errors else 'it gave no reason')


# --- running things, and showing that they run -----------------------------------------------------------------------


def minutes(seconds: float) -> str:
    """A duration as people say it."""
    if seconds < 90:
        return '{:.0f} s'.format(seconds)
    return '{:.0f} min'.format(seconds / 60) if seconds > 600 else '{}:{:02d} min'.format(*divmod(round(seconds), 60))


def roughly(seconds: float) -> str:
    """An estimate, no finer than it is good."""
    if seconds < 55:
        return '{:.0f} s'.format(max(round(seconds, -1), 10))
    count = max(round(seconds / 60), 1)
    return '{} minute{}'.format(count, 's' * (count > 1))


class BuildProgress:
    """What ninja's ``[k/n]`` lines say about a build: how far, and how long still.

    Args:
        guess: Seconds that the whole is expected to take; used until enough files are done to measure.
        window: Files over which the pace is measured.
    """

    LINE = re.compile(r'^\s*\[(\d+)/(\d+)\]\s')

    def __init__(self, guess: float, window: int = 20) -> None:
        self.guess, self.window = guess, window
        self.total = 0
        self.times = []  # type: List[float]

    @property
    def done(self) -> int:
        return len(self.times)

    def feed(self, line: str, now: float) -> None:
        """Take one line of the build's output, ``now`` seconds after the build began."""
        found = self.LINE.match(line)
        if found:
            count, self.total = int(found.group(1)), int(found.group(2))
            self.times += [now] * (count - self.done)

    def left(self, now: float) -> float:
        """Seconds still to go, from the pace of the last files."""
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
            return '{0} of {0} files, linking'.format(self.total)
        return '{} of {} files, about {} left'.format(self.done, self.total, roughly(self.left(now)))


class Screen:
    """Numbered steps with their time; on a terminal the last line lives, elsewhere a plain line comes now and then."""

    PLAIN_EVERY = 20

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.number, self.title, self.began, self.said, self.note = 0, '', 0.0, 0.0, ''

    def step(self, title: str) -> None:
        self.number += 1
        self.title, self.began, self.said = title, time.monotonic(), time.monotonic()
        if not self.live:
            print('[{}/{}] {}'.format(self.number, STEPS, title), flush=True)
        self.tick('')

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def tick(self, note: str) -> None:
        if self.live:
            line = '[{}/{}] {} ... {}{}'.format(
                self.number, STEPS, self.title, minutes(self.elapsed()), ', ' + note if note else ''
            )
            print('\r\033[K' + line[: shutil.get_terminal_size().columns - 1], end='', flush=True)
        elif note and time.monotonic() - self.said >= self.PLAIN_EVERY:
            self.said = time.monotonic()
            print('      {}: {}'.format(minutes(self.elapsed()), note), flush=True)

    def end(self, note: str = '') -> None:
        if self.live:
            print('\r\033[K[{}/{}] {}'.format(self.number, STEPS, self.title))
        print('      {}{}'.format(minutes(self.elapsed()), ': ' + note if note else ''), flush=True)


def run(
    command: Sequence[Any],
    screen: Screen,
    note: Callable[[str], str] = lambda line: '',
    env: Optional[Dict[str, str]] = None,
) -> Tuple[int, str]:
    """Run a command with its output in the log; returns its exit status and what it printed.

    Args:
        command: Program and arguments.
        screen: Where life is shown.
        note: Called with each line of output and with '' when a second has passed; returns what to show.
        env: The environment; this process's own if not given.
    """
    lines = queue.Queue()  # type: queue.Queue
    output = []  # type: List[str]
    with open(str(LOG), 'a') as log:
        log.write('\n$ {}\n'.format(' '.join(shlex.quote(str(part)) for part in command)))
        log.flush()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=str(ROOT),
            env=env,
            start_new_session=True,  # so that an interrupt can stop the compilers below pip, too
        )

        def read() -> None:
            for raw in process.stdout:
                lines.put(raw.decode(errors='replace'))
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        try:
            while True:
                try:
                    line = lines.get(timeout=1)
                except queue.Empty:
                    line = ''
                if line is None:
                    break
                if line:
                    log.write(line)
                    output.append(line)
                screen.tick(note(line))
            status = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)  # a stopped process would not notice
            process.wait()
            raise
    return status, ''.join(output)


def pip_note() -> Callable[[str], str]:
    """What pip is at, from its output: the last thing that it named."""
    last = ['']
    doing = re.compile(r'\s*(Collecting|Downloading|Building wheel for|Installing collected packages)\b:?\s*(\S*)')

    def note(line: str) -> str:
        found = doing.match(line)
        if found:
            what, name = found.groups()
            last[0] = 'installing' if what.startswith('Installing') else '{} {}'.format(what.lower(), name)
        return last[0]

    return note


def pip(screen: Screen, *args: Any) -> None:
    """Run the environment's pip; a failure becomes one message."""
    command = [python(), '-m', 'pip', '--disable-pip-version-check', *args, '--progress-bar', 'off']
    status, output = run(command, screen, pip_note())
    if status:
        raise SetupError('{}\nThe whole output is in {}'.format(explain_pip(output), LOG))


# --- the environment -------------------------------------------------------------------------------------------------


def python() -> Path:
    """The environment's interpreter."""
    return VENV / 'bin' / 'python'


def site_packages() -> Optional[Path]:
    """Where the environment keeps its packages; None before there is one."""
    return next(iter(sorted(VENV.glob('lib/python3.*/site-packages'))), None)


def installed(name: str, site: Optional[Path] = None) -> Optional[str]:
    """Version of a package in the environment, from its dist-info; nothing is imported."""
    site = site or site_packages()
    for info in site.glob('{}-*.dist-info'.format(name)) if site else ():
        return info.name[len(name) + 1 : -len('.dist-info')]
    return None


def mmcv_installed(site: Optional[Path] = None) -> Optional[str]:
    """What identifies the installed mmcv: its version, and its compiled file's size and time.

    The version alone does not change when ``pip install mmcv`` brings a wheel that was compiled for another torch.
    """
    site = site or site_packages()
    compiled = next(iter(site.glob('mmcv/_ext*.so')), None) if site else None
    if compiled is None:
        return None
    return '{} {} {}'.format(installed('mmcv', site), compiled.stat().st_size, compiled.stat().st_mtime_ns)


def pinned(name: str) -> str:
    """Version of a package in constraints.txt."""
    found = re.search(r'^{}==(\S+)'.format(re.escape(name)), (ROOT / 'constraints.txt').read_text(), re.M)
    if not found:
        raise SetupError('constraints.txt has no line {}==…'.format(name))
    return found.group(1)


def inputs_hash() -> str:
    """Changes when anything that decides what the environment holds changes."""
    digest = hashlib.sha256()
    folder = ROOT / 'swinv2_mm/models/kernels/csrc'
    sources = sorted(path for path in folder.iterdir() if path.suffix in ('.cpp', '.h'))
    for path in (
        *(ROOT / name for name in ('constraints.txt', 'pyproject.toml', 'setup.py', 'tools/setup_env.py')),
        *sources,
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def read_stamp() -> Dict[str, Any]:
    """What the last complete setup left behind; empty if there was none."""
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def up_to_date(stamp: Dict[str, Any], inputs: str, torch: Optional[str], mmcv: Optional[str], venv: Path) -> bool:
    """Whether the environment is what the stamp says and the stamp is of today's inputs.

    Args:
        stamp: What the last complete setup wrote.
        inputs: Hash of the files that decide what is installed.
        torch: Version of torch in the environment now.
        mmcv: What identifies mmcv in the environment now.
        venv: Where the environment is now; its scripts hold the path that it was made with.
    """
    now = {'inputs': inputs, 'torch': torch, 'mmcv': mmcv, 'venv': str(venv)}
    return torch is not None and all(stamp.get(key) == value for key, value in now.items())


def done_already(inputs: str) -> bool:
    """Whether there is nothing to do; quick, and nothing is imported."""
    return python().exists() and up_to_date(read_stamp(), inputs, installed('torch'), mmcv_installed(), VENV)


def torch_to_install(pin: str, found: Optional[str], stamp: Dict[str, Any]) -> Tuple[str, bool]:
    """Which torch the environment shall have, and whether that is somebody's own choice.

    Args:
        pin: Version in constraints.txt.
        found: Version in the environment, with its build (``2.13.0+cpu``); None if there is none.
        stamp: What the last complete setup wrote.
    """
    if found is None or found.split('+')[0] == pin:
        return pin, False
    ours = stamp.get('torch') == found and not stamp.get('own_torch')
    return (pin, False) if ours else (found, True)


def constraints_with(lines: str, version: str, own: bool) -> str:
    """The text of constraints.txt for this torch; beside somebody's own, Triton is left to that one's pin."""
    if own:
        lines = re.sub(r'^triton==.*\n', '', lines, flags=re.M)
    return re.sub(r'^torch==\S+', 'torch==' + version, lines, flags=re.M)


def make_venv() -> None:
    """Make the environment, or make it anew: what is in the way is removed."""
    command = [sys.executable, '-m', 'venv', '--clear', str(VENV)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = done.stdout.decode(errors='replace').strip().splitlines() or ['no output']
        raise SetupError('The environment cannot be made in {}: {}'.format(VENV, said[-1]))


class Torch(NamedTuple):
    """What mmcv is compiled against."""

    version: str  # with its build: 2.13.0+cpu, 2.13.0+cu130
    cuda: str  # CUDA that it was made with; '' for a CPU build
    compile_cuda: bool  # whether mmcv's GPU operations are to be compiled
    archs: str  # GPU architectures to compile for; '' without CUDA
    home: str  # CUDA toolkit that its build would use; '' if none


PROBE_TORCH = """
import json, os, torch
from torch.utils.cpp_extension import CUDA_HOME
gpu = torch.cuda.is_available()
found = sorted({'%d.%d' % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}) if gpu else []
cuda = gpu or (os.environ.get('FORCE_CUDA') == '1' and torch.version.cuda is not None)
archs = (os.environ.get('TORCH_CUDA_ARCH_LIST') or ';'.join(found) or 'all') if cuda else ''
print('PROBE' + json.dumps([torch.__version__, torch.version.cuda or '', cuda, archs, CUDA_HOME or '']))
"""


def probe_torch() -> Torch:
    """Ask the environment's torch; raises if it does not import."""
    done = subprocess.run([str(python()), '-c', PROBE_TORCH], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode(errors='replace').strip()
    found = re.search('^PROBE(.*)$', said, re.M)
    if not found:
        last = said.splitlines()[-1] if said else 'no output'
        raise SetupError('torch does not import: {}\nStart afresh: rm -rf .venv && make setup'.format(last))
    return Torch(*json.loads(found.group(1)))


def nvcc_version(home: str) -> Optional[str]:
    """CUDA version of the toolkit's nvcc; None if there is none."""
    nvcc = shutil.which('nvcc', path=str(Path(home, 'bin'))) if home else shutil.which('nvcc')
    if nvcc is None:
        return None
    said = subprocess.run([nvcc, '--version'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
    found = re.search(r'release (\d+\.\d+)', said)
    return found.group(1) if found else None


# --- mmcv ------------------------------------------------------------------------------------------------------------


def wheels_dir(env: Dict[str, str]) -> Path:
    """Where compiled wheels are kept between environments."""
    return Path(env.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'swinv2_mm', 'wheels')


def wheel_key(torch: Torch, python_tag: str, machine: str) -> str:
    """Name of everything that a compiled mmcv depends on."""
    cuda = '-cuda{}-{}'.format(torch.cuda, torch.archs) if torch.compile_cuda else ''
    key = 'mmcv{}-torch{}-{}-{}{}'.format(MMCV, torch.version, python_tag, machine, cuda)
    return re.sub(r'[^\w.+-]', '_', key)


def python_tag() -> str:
    """This Python, as wheels call it."""
    return 'cp{}{}'.format(*sys.version_info[:2])


def jobs(env: Dict[str, str]) -> int:
    """Compilers to run at a time: one per core, and no more than the memory holds."""
    if env.get('MAX_JOBS', '').isdigit():
        return int(env['MAX_JOBS'])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        found = re.search(r'MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text())
    except OSError:
        found = None
    return max(1, min(cores, int(int(found.group(1)) * 1024 / GIB / GIB_PER_JOB))) if found else cores


def is_gcc(compiler: List[str]) -> bool:
    """Whether it really is GNU's: clang answers to g++ on some systems, and precompiles headers differently."""
    call = [*compiler, '-dM', '-E', '-x', 'c++', os.devnull]
    macros = subprocess.run(call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode(errors='replace')
    return '__GNUC__' in macros and '__clang__' not in macros


def write_wrapper(directory: Path, compiler: List[str], header: str) -> Optional[Path]:
    """Write the compiler that precompiles ``header``; None where that is not possible.

    torch accepts a compiler by its file name, and distutils splits ``CXX`` at spaces.
    """
    if ' ' in str(directory) or not is_gcc(compiler):
        return None
    directory.mkdir(parents=True)
    wrapper = directory / 'g++'
    call = [sys.executable, '-I', '-S', str(ROOT / 'tools' / 'cxx_pch.py'), str(directory), header, *compiler, '--']
    wrapper.write_text('#!/bin/sh\nexec {} "$@"\n'.format(' '.join(shlex.quote(part) for part in call)))
    wrapper.chmod(0o755)
    return wrapper


def build_env(env: Dict[str, str], python_flags: str) -> Dict[str, str]:
    """The environment that mmcv is compiled in.

    Python compiles extensions with ``-g``, which takes half of the time. A CFLAGS variable replaces Python's flags
    instead of adding to them, so they are repeated: without them everything would be compiled without optimisation.

    Args:
        env: This process's environment.
        python_flags: What this Python compiles extensions with, ``-O3`` and ``-g`` among them.
    """
    ours = dict(env, MMCV_WITH_OPS='1', MAX_JOBS=str(jobs(env)), PYTHONUNBUFFERED='1')
    ours['PATH'] = '{}{}{}'.format(VENV / 'bin', os.pathsep, env.get('PATH', ''))
    for name in ('CFLAGS', 'CXXFLAGS'):
        ours[name] = '{} -g0'.format(env.get(name) or python_flags).strip()
    return ours


def build_mmcv(torch: Torch, target: Path, screen: Screen) -> None:
    """Compile mmcv's wheel into ``target``, which appears complete or not at all."""
    env = build_env(os.environ, sysconfig.get_config_var('CFLAGS') or '')
    guess = build_guess(torch.compile_cuda, int(env['MAX_JOBS']))
    progress = BuildProgress(guess)
    began = time.monotonic()

    def note(line: str) -> str:
        progress.feed(line, time.monotonic() - began)
        return progress.text(time.monotonic() - began)

    with tempfile.TemporaryDirectory(prefix='swinv2_mm-') as temp:
        env['TMPDIR'] = temp
        compiler = compiler_command(env)
        # Half of what a file of mmcv includes. torch/extension.h is more, and slower to load than what it saves.
        wrapper = write_wrapper(Path(temp, 'compiler'), compiler, 'torch/types.h')
        if wrapper:
            env['CXX'] = str(wrapper)
        out = Path(temp, 'wheel')
        command = [python(), '-m', 'pip', '--disable-pip-version-check', 'wheel', '-v', '--no-build-isolation']
        command += ['--no-deps', '--no-cache-dir', '--no-binary', 'mmcv', '-w', out, 'mmcv==' + MMCV]
        status, output = run(command, screen, note, env)
        wheels = list(out.glob('mmcv-*.whl'))
        if status or not wheels:
            raise SetupError(explain_build(output))
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=str(target.parent), prefix='unfinished-'))
        try:
            shutil.copy(str(wheels[0]), str(unfinished))
            if target.exists():
                shutil.rmtree(str(target))
            unfinished.rename(target)
        except BaseException:
            shutil.rmtree(str(unfinished), ignore_errors=True)
            raise


def build_guess(cuda: bool, cores: int) -> float:
    """Seconds that compiling mmcv will take, roughly."""
    return FILES * SECONDS_PER_FILE * (CUDA_FACTOR if cuda else 1) / cores + SECONDS_HEADER


def explain_build(output: str) -> str:
    """Why compiling failed, from what was printed."""
    where = 'The whole output is in {}'.format(LOG)
    if re.search(r'Killed signal terminated program|internal compiler error: Killed', output):
        return 'The compiler ran out of memory. Use fewer at a time: MAX_JOBS=1 make setup\n{}'.format(where)
    errors = re.findall(r'^.*(?:error:|Error:|FAILED:).*$', output, re.M)
    known = explain_pip(output)
    if not known.startswith('pip failed'):
        return '{}\n{}'.format(known, where)
    return 'mmcv {} could not be compiled: {}\n{}'.format(MMCV, errors[0].strip() if errors else known, where)


CHECK_MMCV = """
import sys
try:
    import cv2, mmengine, torch, mmcv
except Exception as error:
    sys.exit('BESIDE ' + str(error))
from mmcv.ops import get_compiling_cuda_version, nms
keep = nms(torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9]]), torch.tensor([0.9, 0.8]), 0.5)[1]
assert keep.tolist() == [0], keep
assert not torch.cuda.is_available() or get_compiling_cuda_version() != 'not available', 'compiled without CUDA'
"""


def mmcv_problem() -> Optional[str]:
    """Why the installed mmcv's compiled operations do not run; None if they do.

    Raises for what compiling again would not mend: a package beside mmcv that does not import.
    """
    command = [str(python()), '-W', 'ignore', '-c', CHECK_MMCV]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode(errors='replace').strip()
    if done.returncode == 0:
        return None
    last = said.splitlines()[-1] if said else 'it crashed'
    if last.startswith('BESIDE '):
        raise SetupError(explain_import(last[len('BESIDE ') :]))
    return last


def explain_import(problem: str) -> str:
    """What to do about a package that was installed and does not import."""
    if re.search(r'libGL|libgthread|libglib', problem):
        return 'OpenCV needs system libraries ({}).\nOn Debian and Ubuntu: apt-get install libgl1 libglib2.0-0'.format(
            problem
        )
    return '{}\nStart afresh: rm -rf .venv && make setup'.format(problem)


def install_mmcv(torch: Torch, screen: Screen) -> None:
    """Install mmcv compiled for this torch; compile it if no such wheel is kept, or if the kept one does not run."""
    target = wheels_dir(os.environ) / wheel_key(torch, python_tag(), platform.machine())
    kept = sorted(target.glob('mmcv-*.whl'))
    for attempt in ('kept', 'compiled'):
        if attempt == 'kept' and not kept:
            continue
        if attempt == 'compiled':
            prepare_build(torch)
            cores = jobs(os.environ)
            guess = roughly(build_guess(torch.compile_cuda, cores))
            screen.step(
                'compile mmcv {} for torch {}: about {} on {} core{}, once'.format(
                    MMCV, torch.version, guess, cores, 's' * (cores > 1)
                )
            )
            build_mmcv(torch, target, screen)
        else:
            screen.step('install mmcv {}, compiled earlier for torch {}'.format(MMCV, torch.version))
        wheel = sorted(target.glob('mmcv-*.whl'))[0]
        pip(screen, 'install', '--no-deps', '--force-reinstall', wheel)
        problem = mmcv_problem()
        screen.end('kept in {}'.format(target) if attempt == 'compiled' else '')
        if problem is None:
            return
        if attempt == 'kept':
            print('      it does not run here ({}): compiling it anew'.format(problem), flush=True)
            screen.number -= 1
    raise SetupError('mmcv was compiled and does not run: {}\nThe output of the build is in {}'.format(problem, LOG))


def prepare_build(torch: Torch) -> None:
    """Check what compiling needs."""
    check_compiler(compiler_command(os.environ), sysconfig.get_path('include'))
    check_cuda_compiler(torch, nvcc_version(torch.home))
    temp = Path(tempfile.gettempdir())
    remedy = 'Free some space, or name another place: TMPDIR=/some/where make setup'
    check_disk(shutil.disk_usage(str(temp)).free, BUILD_GIB, temp, 'Compiling mmcv', remedy)


# --- all together ----------------------------------------------------------------------------------------------------


def check_machine(screen: Screen) -> None:
    """Whatever would stop the setup later is said now, before anything is downloaded."""
    screen.step('check this machine')
    check_venv(missing_modules(), sys.version_info)
    notes = ['Python {}.{}.{}'.format(*sys.version_info[:3])]
    if site_packages() is None or installed('torch') is None:
        needed = VENV_CUDA_GIB if shutil.which('nvidia-smi') else VENV_GIB
        remedy = 'Free some space and run `make setup` again.'
        check_disk(shutil.disk_usage(str(ROOT)).free, needed, ROOT, 'The environment', remedy)
    probably = Torch(installed('torch') or pinned('torch'), '', False, '', '')
    prefix = wheel_key(probably, '', '').rstrip('-')
    if not any(path.name.startswith(prefix) for path in wheels_dir(os.environ).glob('mmcv*')):
        notes.append(check_compiler(compiler_command(os.environ), sysconfig.get_path('include')))
    notes.append('{:.0f} GB free'.format(shutil.disk_usage(str(ROOT)).free / GIB))
    screen.end(', '.join(notes))


def prepare_venv(screen: Screen, stamp: Dict[str, Any]) -> None:
    """Make the environment unless there is a usable one."""
    site = site_packages()
    moved = bool(stamp) and stamp.get('venv') != str(VENV)
    usable = site is not None and not moved and (site / 'pip').is_dir() and python().exists()
    if usable:
        version = site.parent.name[len('python') :]
        if version != '{}.{}'.format(*sys.version_info[:2]):
            if os.environ.get('PYTHON'):
                raise SetupError(
                    '.venv was made with Python {}, and you asked for {}.{}. Remove it first: rm -rf .venv'.format(
                        version, *sys.version_info[:2]
                    )
                )
            os.execv(str(python()), [str(python()), *sys.argv])
        return
    screen.step('create .venv')
    make_venv()
    screen.end()


def main() -> None:
    inputs = inputs_hash()
    if done_already(inputs):
        return
    try:
        check_python(sys.version_info)
    except SetupError as error:
        other = find_python()
        if other is None:
            raise
        print('{}\nUsing {}'.format(str(error).splitlines()[0], other), flush=True)
        os.execv(other, [other, *sys.argv])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with only_one():
        # Another one may just have done it.
        if not done_already(inputs):
            set_up(inputs, read_stamp())


@contextmanager
def only_one() -> Iterator[None]:
    """Wait while another setup of this checkout runs; a file system without locks does without."""
    handle = os.open(str(ROOT), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print('waiting for another `make setup` of this checkout', flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


def set_up(inputs: str, stamp: Dict[str, Any]) -> None:
    """All steps; each finds what an interrupted earlier run has done.

    Args:
        inputs: Hash of the files that decide what is installed, for the stamp.
        stamp: What the last complete setup wrote.
    """
    began = time.monotonic()
    screen = Screen()
    check_machine(screen)
    prepare_venv(screen, stamp)
    screen.number = 2
    LOG.write_text('')

    version, own = torch_to_install(pinned('torch'), installed('torch'), stamp)
    constraints = VENV / 'constraints.txt'
    constraints.write_text(constraints_with((ROOT / 'constraints.txt').read_text(), version, own))
    screen.step('install torch {}, mmengine and what compiling needs'.format(version))
    if own:
        print('      torch {} was installed by hand and is kept; tested is {}'.format(version, pinned('torch')))
    pip(screen, 'install', '-c', constraints, 'torch', *BEFORE_MMCV)
    screen.end()

    torch = probe_torch()
    if stamp.get('torch') == torch.version and installed('mmcv') == MMCV and mmcv_problem() is None:
        screen.number += 1
    else:
        install_mmcv(torch, screen)

    screen.step('install MMDetection, MMSegmentation, swinv2_mm and the rest')
    pip(screen, 'install', '-c', constraints, '--no-build-isolation', '-e', EXTRAS)
    screen.end()
    screen.step('check')
    problem = mmcv_problem()
    if problem:
        raise SetupError('mmcv does not run: {}\nStart afresh: rm -rf .venv && make setup'.format(problem))
    status, output = run([python(), '-m', 'pip', '--disable-pip-version-check', 'check'], screen)
    screen.end('' if status == 0 else 'pip check: ' + output.strip())
    found = {'inputs': inputs, 'torch': installed('torch'), 'mmcv': mmcv_installed(), 'venv': str(VENV)}
    found['own_torch'] = own
    STAMP.write_text(json.dumps(found, indent=1) + '\n')
    print('ready in {}: make test, make train, . .venv/bin/activate'.format(minutes(time.monotonic() - began)))


def fail(message: str) -> NoReturn:
    print('\nsetup stopped. {}'.format(message), file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
    try:
        main()
    except SetupError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail('Interrupted; `make setup` continues where it stopped.')
