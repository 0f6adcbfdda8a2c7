"""Precompile torch's headers while mmcv is built: g++ then parses them once, not in each of 77 files.

As a program, with the header's path, this file runs in the environment's Python beside the build.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

# Half of what a file of mmcv includes. torch/extension.h is more, but takes longer to load than it saves.
HEADER = '#include <torch/types.h>\n'


def is_gcc(compiler: Sequence[str]) -> bool:
    """Whether it is really GNU's: clang answers to g++ on some systems, and fails where g++ reads the text."""
    call = [*compiler, '-dM', '-E', '-x', 'c++', os.devnull]
    try:
        macros = subprocess.run(call, capture_output=True, text=True).stdout
    except OSError:
        return False
    return '__GNUC__' in macros and '__clang__' not in macros


@contextmanager
def included(
    folder: Path, compiler: Sequence[str], python: Path, env: Mapping[str, str], text: str = HEADER
) -> Iterator[list[str]]:
    """Precompile a header in the background; give the flags that include it, none where that is not possible.

    Files that are compiled before it is complete read its text.

    Args:
        folder: Where to write the header.
        compiler: What mmcv is compiled with.
        python: The environment's.
        env: The environment variables that mmcv is compiled with.
        text: The header.
    """
    if ' ' in str(folder) or not is_gcc(compiler):  # distutils splits CPPFLAGS at spaces
        yield []
        return
    header = folder / 'header.hpp'
    header.write_text(text)
    call = [python, '-I', __file__, header, *compiler]
    process = subprocess.Popen(call, env=env, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        yield ['-include', str(header)]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def precompile(header: Path, command: Sequence[str]) -> None:
    """Write ``header.hpp.gch``, completely or not at all."""
    partial = header.with_suffix('.tmp')
    done = subprocess.run([*command, '-x', 'c++-header', header, '-o', partial], stderr=subprocess.DEVNULL)
    if done.returncode == 0:
        partial.replace(f'{header}.gch')


def flags_of_mmcv() -> list[str]:
    """What mmcv's files are compiled with: g++ ignores a header that was precompiled with other flags."""
    from setuptools._distutils import ccompiler, sysconfig
    from torch.utils.cpp_extension import include_paths

    compiler = ccompiler.new_compiler()
    sysconfig.customize_compiler(compiler)
    includes = [f'-I{path}' for path in [*include_paths(), sysconfig.get_python_inc()]]
    return [*compiler.compiler_so[1:], *includes, '-std=c++17']


if __name__ == '__main__':
    precompile(Path(sys.argv[1]), [*sys.argv[2:], *flags_of_mmcv()])
