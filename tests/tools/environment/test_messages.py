"""tools/environment/messages.py: what people read when something failed."""

import pytest
from environment.messages import explain

PIP_NETWORK = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(': Failed to
 establish a new connection: [Errno -3] Temporary failure in name resolution')': /simple/uv/
ERROR: Could not find a version that satisfies the requirement uv==0.13.9 (from versions: none)
ERROR: No matching distribution found for uv==0.13.9
"""
UV_NETWORK = """error: Failed to fetch: http://pypi.invalid/simple/torch/
  cause: error sending request for url (http://pypi.invalid/simple/torch/)
  cause: client error (Connect)
  cause: dns error
"""
UV_NO_VERSION = """error: No solution found when resolving dependencies
  cause: Because there is no version of torch==2.13.0 and you require torch==2.13.0, we can conclude that your
 requirements are unsatisfiable.
"""


@pytest.mark.parametrize(
    ('output', 'told'),
    [
        (PIP_NETWORK, 'cannot be reached'),
        (UV_NETWORK, 'cannot be reached'),
        ('error: Request failed after 1 retry\n  cause: tcp connect error\n  cause: Connection refused', 'be reached'),
        ('ERROR: No matching distribution found for uv==0.13.9\n', 'has no uv==0.13.9 for this machine'),
        (UV_NO_VERSION, 'has no torch==2.13.0 for this machine'),
        ('  cause: Because torch was not found in the package registry and', 'has no torch for this machine'),
        (
            '  cause: torch==2.13.0 has no wheels with a matching Python ABI tag',
            'has no torch==2.13.0 for this machine',
        ),
        ('OSError: [Errno 28] No space left on device\n', 'disk is full'),
        ('  cause: failed to write to file `_imaging.so`: No space left on device (os error 28)', 'disk is full'),
        ('error: Failed to initialize cache at `/.cache/uv`\n  cause: Permission denied', 'UV_CACHE_DIR='),
        ('error: Could not acquire lock\n  cause: Read-only file system', 'UV_CACHE_DIR='),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", 'global.cert'),
        ('  cause: client error (Connect)\n  cause: invalid peer certificate: UnknownIssuer', 'global.cert'),
        ('line\nERROR: something new\n', 'failed: ERROR: something new'),
        ('line\nerror: something new\n  cause: this\n  cause: that', 'failed: error: something new\n  cause: this'),
        ('requests.exceptions.ProxyError: 407 Proxy Authentication Required', 'set HTTPS_PROXY'),
        ('', 'failed: it gave no reason'),
    ],
)
def test_failures_of_pip_and_uv_are_explained(output, told):
    """Bug: without a network the output says "no version of torch", and people look for another version."""
    assert told in explain(output)


def test_a_failed_build_is_explained():
    """Bug: "command 'ninja' failed" is shown when the kernel killed the compiler, or for an error in a source."""
    text = explain('FAILED: a.o\nc++: fatal error: Killed signal terminated program cc1plus\n')
    assert 'MAX_JOBS=1 make setup' in text
    text = explain('[1/3] ...\nDEBUG nms.cpp:3:1: error: no such thing\nnote\nerror: later\n')
    assert 'nms.cpp:3:1: error: no such thing' in text
