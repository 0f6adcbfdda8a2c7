"""Precompile torch's headers while mmcv is built: g++ then parses them once, not in each of 77 files."""

import os
import shlex
import subprocess
from pathlib import Path

# Half of what a file of mmcv includes. torch/extension.h is more, but takes longer to load than it saves.
HEADER = '#include <torch/types.h>\n'
# What mmcv's files are compiled with. g++ ignores a header that was precompiled with other flags, and reads its text.
FLAGS = """
import shlex
from setuptools._distutils import ccompiler, sysconfig
from torch.utils.cpp_extension import include_paths
compiler = ccompiler.new_compiler()
sysconfig.customize_compiler(compiler)
includes = ['-I' + path for path in [*include_paths(), sysconfig.get_python_inc()]]
print(shlex.join([*compiler.compiler_so[1:], *includes, '-std=c++17']))
"""


def is_gcc(compiler: list[str]) -> bool:
    """Whether it is really GNU's: clang answers to g++ on some systems, and fails where g++ reads the text."""
    call = [*compiler, '-dM', '-E', '-x', 'c++', os.devnull]
    try:
        macros = subprocess.run(call, capture_output=True, text=True).stdout
    except OSError:
        return False
    return '__GNUC__' in macros and '__clang__' not in macros


def include_flags(folder: Path, compiler: list[str], header: str = HEADER) -> list[str]:
    """Write the header, and return the flags that include it; none where precompiling is not possible."""
    if ' ' in str(folder) or not is_gcc(compiler):
        return []
    (folder / 'header.hpp').write_text(header)
    return ['-include', f'{folder}/header.hpp']


def flags_of(python: Path, env: dict[str, str]) -> str:
    """The flags that this Python compiles extensions of torch with; '' if it does not tell."""
    return subprocess.run([python, '-c', FLAGS], env=env, capture_output=True, text=True).stdout.strip()


def precompile(folder: Path, compiler: list[str], flags: str) -> subprocess.Popen:
    """Precompile the header in the background. Files that are compiled before it is complete read its text."""
    header = shlex.quote(f'{folder}/header.hpp')
    made = f'{shlex.join(compiler)} {flags} -x c++-header {header} -o {header}.tmp'
    quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}
    return subprocess.Popen(f'{made} && mv {header}.tmp {header}.gch', shell=True, start_new_session=True, **quiet)
