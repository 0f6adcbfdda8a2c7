"""What a setup tells people: its steps with the time, and why it stopped."""

import platform
import re
import sys
import time
from typing import NoReturn

BEGAN = time.monotonic()

# A pattern in the output of uv, pip or a compiler, and its meaning. The first match is reported.
FAILURES = (
    (
        r'No space left on device|Errno 28',
        'The disk is full. torch alone takes 1 GB, its CUDA build 7 GB. Free some space and run `make setup` again, or '
        "name another place for uv's cache or for temporary files: UV_CACHE_DIR=… TMPDIR=… make setup",
    ),
    (
        r'Failed to initialize cache|Could not acquire lock',
        "uv's cache cannot be written. Name another place: UV_CACHE_DIR=/some/where make setup",
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
    (
        r'(?i)ConnectionError|ProxyError|connection (?:refused|reset|broken|aborted)|establish a new connection|'
        r'Max retries|name resolution|dns error|client error|error sending request|ReadTimeoutError|timed out|'
        r'network is unreachable',
        'The package index cannot be reached. Check the network; behind a proxy set HTTPS_PROXY, and for a mirror '
        'PIP_INDEX_URL. Then run `make setup` again: it continues where it stopped.',
    ),
    (
        r'No matching distribution found for (\S+)|there is no version of ([^\s,]+)|'
        r'Because (\S+) was not found in the package registry|(\S+) has no wheels with a matching',
        'The package index has no {what} for this machine ({machine}), or cannot be reached. Check the network; '
        'another Python may have one: make setup PYTHON=python3.11',
    ),
)


def say(text: str) -> None:
    """Print a line with the minutes and seconds since the start."""
    print('[{}:{:02d}] {}'.format(*divmod(int(time.monotonic() - BEGAN), 60), text), flush=True)


def stop(message: str) -> NoReturn:
    """Exit with status 1 and this message."""
    sys.exit(f'\nsetup stopped. {message}')


def explain(output: str) -> str:
    """The cause of a failure and its remedy, from the output of uv, pip or a compiler."""
    for pattern, meaning in FAILURES:
        if found := re.search(pattern, output):
            machine = f'{platform.system()} {platform.machine()}, Python {platform.python_version()}'
            return meaning.format(machine=machine, what=next(filter(None, found.groups()), ''))
    errors = re.findall(r'^.*(?:error:|FAILED:).*$(?:\n\s+cause: .*)*', output, re.M | re.I)
    return f'The installation failed: {errors[0].strip() if errors else "it gave no reason"}'
