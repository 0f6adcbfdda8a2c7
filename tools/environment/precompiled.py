"""Precompile torch's headers while mmcv is built: g++ then parses them once, not in each of 77 files.

As a program, with the header's path, this file runs in the environment's Python beside the build.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# Half of what a file of mmcv includes. torch/extension.h is more, but takes longer to load than it saves.
HEADER = '#include <torch/types.h>\n'


@contextmanager
def included(folder: Path, python: Path, env: Mapping[str, str], text: str = HEADER) -> Iterator[list[str]]:
    """Precompile a header in the background, for builds with the variables ``env``; give the flags that include it.

    Files that are compiled before it is complete read its text.
    """
    if ' ' in str(folder):  # distutils splits CPPFLAGS at spaces
        yield []
        return
    header = folder / 'header.hpp'
    header.write_text(text)
    call = [python, '-I', __file__, header]
    process = subprocess.Popen(call, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield ['-include', str(header)]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def precompile(header: Path, command: list[str]) -> None:
    """Write ``header.hpp.gch``, completely or not at all."""
    partial = header.with_suffix('.tmp')
    done = subprocess.run([*command, '-x', 'c++-header', header, '-o', partial])
    # Only g++'s own: made with other flags, g++ reads the text instead, and clang (often called g++ or c++) fails.
    if done.returncode == 0 and partial.read_bytes()[:4] == b'gpch':
        partial.replace(f'{header}.gch')


def build_command() -> list[str]:
    """How extensions of torch are compiled: a header is used with the flags that it was precompiled with."""
    from setuptools._distutils import ccompiler, sysconfig
    from torch.utils.cpp_extension import include_paths

    compiler = ccompiler.new_compiler()
    sysconfig.customize_compiler(compiler)
    includes = [f'-I{path}' for path in [*include_paths(), sysconfig.get_python_inc()]]
    return [*shlex.split(os.environ.get('CXX') or 'c++'), *compiler.compiler_so[1:], *includes, '-std=c++17']


if __name__ == '__main__':
    precompile(Path(sys.argv[1]), build_command())
