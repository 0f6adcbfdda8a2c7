"""Call uv with pip's settings of this machine, show its progress, and explain its failures."""

import ast
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from environment.machine import APT_COMPILER, SetupError
from environment.progress import Screen

ROOT = Path(__file__).resolve().parents[2]
Note = Callable[[str], str]

# A setting of pip, the variable by which uv takes it, and what separates several values there.
SETTINGS = (
    ('index-url', 'UV_DEFAULT_INDEX', ' '),
    ('extra-index-url', 'UV_INDEX', ' '),
    ('find-links', 'UV_FIND_LINKS', ','),
    ('constraint', 'UV_CONSTRAINT', ' '),
    ('trusted-host', 'UV_INSECURE_HOST', ' '),
    ('cert', 'SSL_CERT_FILE', ' '),
    ('client-cert', 'SSL_CLIENT_CERT', ' '),
    ('proxy', 'ALL_PROXY', ' '),
    ('default-timeout', 'UV_HTTP_TIMEOUT', ' '),
    ('timeout', 'UV_HTTP_TIMEOUT', ' '),
    ('retries', 'UV_HTTP_RETRIES', ' '),
)

# A pattern in the output of uv, pip or a compiler, and its meaning. The first match is reported.
FAILURES = (
    (
        r'No space left on device|Errno 28',
        'The disk is full. torch alone takes 1 GB, its CUDA build 7 GB; free some space and run `make setup` again.',
    ),
    (
        r'Killed signal terminated program|internal compiler error: Killed',
        'The compiler ran out of memory. Use fewer at a time: MAX_JOBS=1 make setup',
    ),
    (
        r'CERTIFICATE_VERIFY_FAILED|SSLError|SSLCertVerificationError|invalid peer certificate',
        "The package index's certificate is not trusted here. Behind a company proxy give pip its certificate: "
        'pip config set global.cert /path/to/ca.pem',
    ),
    (r'ProxyError|407 Proxy|proxy authentication', 'The proxy refused the connection. Check HTTPS_PROXY.'),
    (
        r'NewConnectionError|Failed to establish a new connection|name resolution|Name or service not known|dns error|'
        r'ConnectTimeoutError|ReadTimeoutError|Max retries exceeded|Connection refused|Network is unreachable|'
        r'NameResolutionError|RemoteDisconnected|ConnectionResetError|IncompleteRead|Connection broken|'
        r'client error \(Connect\)|operation timed out|error sending request|connection reset',
        'The package index cannot be reached. Check the network; behind a proxy set HTTPS_PROXY, and for a mirror '
        'PIP_INDEX_URL. Then run `make setup` again: it continues where it stopped.',
    ),
    (
        r'No matching distribution found for (?P<what>\S+)|there is no version of (?P<version>[^\s,]+)|'
        r'Because (?P<package>\S+) was not found in the package registry|'
        r'(?P<wheel>\S+) has no wheels with a matching',
        'The package index has no {what} for this machine ({machine}), or cannot be reached. Check the network; '
        'another Python may have one: make setup PYTHON=python3.11',
    ),
    (r"command '\S*(?:c\+\+|g\+\+|gcc|cc)' failed: No such file", 'There is no C++ compiler.\n' + APT_COMPILER),
)


def explain(output: str) -> str:
    """The cause of a failure and its remedy, from the output of uv, pip or a compiler."""
    for pattern, meaning in FAILURES:
        if found := re.search(pattern, output):
            machine = f'{platform.system()} {platform.machine()}, Python {platform.python_version()}'
            return meaning.format(machine=machine, what=next(filter(None, found.groups()), ''))
    errors = re.findall(r'^.*(?:error:|FAILED:).*$(?:\n\s+cause: .*)*', output, re.M | re.I)
    return f'The installation failed: {errors[0].strip() if errors else "it gave no reason"}'


def settings(pip_config: str, env: dict[str, str]) -> dict[str, str]:
    """Environment variables that hand pip's settings to uv; those that ``env`` has already are left out.

    Args:
        pip_config: Output of ``pip config list``, which includes the PIP_ variables as section ``:env:``.
        env: The environment of this process.
    """
    found = re.findall(r'^(\S+)\.([\w-]+)=(.*)$', pip_config, re.M)
    merged = {
        name: str(ast.literal_eval(value))
        for wanted in ('global', 'install', ':env:')  # the last one wins
        for section, name, value in found
        if section == wanted
    }
    # pip takes the best version of all indexes and trusts the system's certificates.
    ours = {'UV_INDEX_STRATEGY': 'unsafe-best-match', 'UV_SYSTEM_CERTS': '1'}
    ours.update({variable: by.join(merged[name].split()) for name, variable, by in SETTINGS if merged.get(name)})
    if merged.get('no-index', 'false').lower() in ('1', 'true', 'yes', 'on'):
        ours['UV_OFFLINE'] = '1'
    return {name: value for name, value in ours.items() if name not in env}


def cache(env: dict[str, str], fallback: Path) -> Path:
    """The folder of uv's cache; ``fallback`` where that one cannot be written."""
    wanted = Path(env.get('UV_CACHE_DIR') or Path(env.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'uv')).absolute()
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=wanted).close()
    except OSError:
        return fallback
    return wanted


def starts(program: str | None) -> bool:
    """Whether this uv runs here: it refuses if it is older than pyproject.toml's ``required-version``."""
    try:
        return bool(program) and not subprocess.run([program, 'cache', 'dir'], cwd=ROOT, capture_output=True).returncode
    except OSError:
        return False


def note_of(line: str) -> str:
    """What uv is doing, from one line of its output; '' if the line does not say."""
    found = re.match(r'\s*(Downloading|Building|Prepared|Installed|Collecting)\b:?\s*(\S*)', line)
    return f'{found.group(1).lower()} {found.group(2)}' if found else ''


def run(
    command: Sequence[object], screen: Screen, log: Path, env: dict[str, str], note: Note = note_of
) -> tuple[int, str]:
    """Run a command with its output in the log, and show ``note`` of each line. Return its exit status and output."""
    command, output = [str(part) for part in command], []
    pipes = {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT}
    # A session of its own, so that an interrupt also stops the compilers below uv.
    process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **pipes)
    with process, log.open('a') as writer:
        writer.write(f'\n$ {shlex.join(command)}\n')
        try:
            for line in (raw.decode(errors='replace').rstrip('\n') for raw in process.stdout):
                writer.write(line + '\n')
                writer.flush()
                output.append(line)
                screen.tick(note(line))
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)  # a stopped process would not notice
            raise
    return process.returncode, '\n'.join(output)


class Uv:
    """uv for one environment. A call that fails raises with an explanation.

    Args:
        python: The environment's interpreter. pip installs uv beside it, unless there is a recent one on PATH.
        constraints: File with the pinned versions.
        cache: Folder of uv's cache.
        screen: Shows progress.
        log: File that all output is appended to.
    """

    def __init__(self, python: Path, constraints: Path, cache: Path, screen: Screen, log: Path) -> None:
        self.python, self.screen, self.log = python, screen, log
        config = subprocess.run([python, '-m', 'pip', 'config', 'list'], capture_output=True, text=True).stdout
        self.env = {**os.environ, **settings(config, dict(os.environ)), 'UV_CACHE_DIR': str(cache)}
        pins = os.path.relpath(constraints, ROOT)  # uv splits these variables at spaces, which ROOT may have
        self.env['UV_CONSTRAINT'] = f'{pins} {self.env.get("UV_CONSTRAINT", "")}'.strip()
        self.env['UV_BUILD_CONSTRAINT'] = pins
        self.program = next(filter(starts, (shutil.which('uv'), str(python.with_name('uv')))), None)
        if self.program is None:
            pinned = re.search(r'^uv==\S+', constraints.read_text(), re.M).group()
            self._checked([python, '-m', 'pip', 'install', '--progress-bar', 'off', pinned])
            self.program = str(python.with_name('uv'))

    def _checked(self, command: list[object], env: dict[str, str] | None = None, note: Note = note_of) -> str:
        status, output = run(command, self.screen, self.log, {**self.env, **(env or {})}, note)
        if status:
            raise SetupError(f'{explain(output)}\nThe whole output is in {self.log}')
        return output

    def install(self, *args: object, env: dict[str, str] | None = None, note: Note = note_of) -> str:
        """Install into the environment, and return uv's output."""
        command = [self.program, 'pip', 'install', '--python', self.python, '--no-build-isolation-package', 'mmcv']
        return self._checked([*command, *args], env, note)

    def uninstall(self, package: str) -> None:
        self._checked([self.program, 'pip', 'uninstall', '--python', self.python, package])

    def forget(self, package: str) -> None:
        """Remove a package's builds and downloads from the cache."""
        self._checked([self.program, 'cache', 'clean', package])
