"""uv in an environment, with pip's settings of this machine: it resolves, installs, builds and caches."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from environment.machine import ask
from environment.messages import explain, say, stop

ROOT = Path(__file__).resolve().parents[2]
SECONDS_BETWEEN_NOTES = 20

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


def make_environment(folder: Path) -> None:
    """Create an environment of this Python, with pip, in the place of what is there."""
    status, said = ask([sys.executable, '-m', 'venv', '--clear', folder])
    if status:
        version = '{}.{}'.format(*sys.version_info[:2])
        missing = re.search('ensurepip|No module named', said)  # Debian ships it in a package of its own
        remedy = f'\nOn Debian and Ubuntu: apt-get install python{version}-venv' if missing else ''
        stop(f'Python {version} cannot create the environment {folder}:\n{said}{remedy}')


def settings(pip_config: str, env: Mapping[str, str]) -> dict[str, str]:
    """Variables that hand the output of ``pip config list`` to uv; those that ``env`` has already are left out."""
    merged: dict[str, str] = {}
    for section in ('global', 'install', ':env:'):  # the last one, of the PIP_ variables, wins
        found = re.findall(rf'^{section}\.([\w-]+)=(.*)$', pip_config, re.M)
        merged.update({name: str(ast.literal_eval(value)) for name, value in found})
    # pip takes the best version of all indexes and trusts the system's certificates.
    ours = {'UV_INDEX_STRATEGY': 'unsafe-best-match', 'UV_SYSTEM_CERTS': '1'}
    ours.update({variable: by.join(merged[name].split()) for name, variable, by in SETTINGS if merged.get(name)})
    if merged.get('no-index', 'false').lower() in ('1', 'true', 'yes', 'on'):
        ours['UV_OFFLINE'] = '1'
    return {name: value for name, value in ours.items() if name not in env}


def note_of(line: str) -> str:
    """What uv or ninja is doing, from one line of the output; '' if the line does not say."""
    if found := re.match(r'\s*(?:DEBUG )?\s*\[(\d+)/(\d+)\]\s', line):
        return f'compiled {found.group(1)} of {found.group(2)} files'
    found = re.match(r'\s*(Downloading|Building|Prepared|Installed|Collecting)\b:?\s*(\S*)', line)
    return f'{found.group(1).lower()} {found.group(2)}' if found else ''


def run(command: Sequence[object], log: Path, env: Mapping[str, str]) -> tuple[int, str]:
    """Run a command with its output in the log, and say now and then what it does. Return exit status and output."""
    command, output, said = [str(part) for part in command], [], time.monotonic()
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
                note = note_of(line)
                if note.startswith('building') or (note and time.monotonic() - said > SECONDS_BETWEEN_NOTES):
                    say(note)
                    said = time.monotonic()
            process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    return process.returncode, '\n'.join(output)


class Uv:
    """uv for the environment of a Python, with a file of pinned versions; the log gets all output.

    A call that fails stops the setup and says why.
    """

    def __init__(self, python: Path, constraints: Path, log: Path) -> None:
        self.python, self.log, self.program = python, log, python.with_name('uv')
        self.env = {**os.environ, **settings(ask([python, '-m', 'pip', 'config', 'list'])[1], os.environ)}
        pins = os.path.relpath(constraints, ROOT)  # uv splits these variables at spaces, which ROOT may have
        self.env['UV_CONSTRAINT'] = f'{pins} {self.env.get("UV_CONSTRAINT", "")}'.strip()
        self.env['UV_BUILD_CONSTRAINT'] = pins

    def _call(self, *command: object, env: Mapping[str, str] | None = None) -> None:
        status, output = run(command, self.log, {**self.env, **(env or {})})
        if status:
            stop(f'{explain(output)}\nThe whole output is in {self.log}')

    def bootstrap(self, version: str) -> None:
        """Have pip install this version of uv into the environment."""
        self._call(self.python, '-m', 'pip', 'install', '--progress-bar', 'off', f'uv=={version}')

    def install(self, *arguments: object, env: Mapping[str, str] | None = None) -> None:
        """Install into the environment, with more variables if something is to be built."""
        options = ['--python', self.python, '--no-build-isolation-package', 'mmcv']
        self._call(self.program, 'pip', 'install', *options, *arguments, env=env)

    def uninstall(self, package: str) -> None:
        """Remove a package, if it is there."""
        self._call(self.program, 'pip', 'uninstall', '--python', self.python, package)
