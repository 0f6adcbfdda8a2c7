"""A compiler wrapper that precompiles one heavy header: g++ reads torch's headers once, not once per file.

Usage: ``cxx_pch.py DIR HEADER COMPILER... -- ARGUMENTS``. A ``-c file.cpp`` call is run with ``-include`` of a
precompiled ``HEADER``, which the first such call makes in ``DIR`` with its own flags. Every other call, and every call
while the header is not ready or could not be made, is run unchanged. g++ refuses a precompiled header that was made
with other flags and reads the text instead, so what is compiled is the same either way.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

SOURCES = ('.cpp', '.cc', '.cxx')
WITH_VALUE = ('-o', '-MF', '-MT', '-MQ', '-I', '-D', '-U', '-isystem', '-iquote', '-idirafter', '--param')
PER_FILE = ('-c', '-MMD', '-MD')
PER_FILE_WITH_VALUE = ('-o', '-MF', '-MT', '-MQ')
# Calls that want another output.
LEAVE_ALONE = ('-E', '-S', '-M', '-MM', '-fsyntax-only')


def header_flags(args: list[str]) -> 'list[str] | None':
    """The flags that decide what a header compiles to, or None if this is not the compilation of one C++ file."""
    if '-c' not in args or any(arg in LEAVE_ALONE for arg in args):
        return None
    flags, sources, rest = [], 0, iter(args)
    for arg in rest:
        if arg in WITH_VALUE:
            value = next(rest, '')
            if arg not in PER_FILE_WITH_VALUE:
                flags += [arg, value]
        elif arg.startswith('-'):
            if arg not in PER_FILE:
                flags.append(arg)
        elif arg.endswith(SOURCES):
            sources += 1
        else:  # an object, @arguments, or the value of an option that is not known here, like -x and -include
            return None
    return flags if sources == 1 else None


def precompiled(directory: Path, header: str, compiler: list[str], flags: list[str]) -> 'Path | None':
    """The header to include, precompiled with ``flags``; None while another call makes it, or if it cannot be made.

    Nobody waits for it: compiling a file the slow way is quicker than waiting.
    """
    text, made = directory / 'precompiled.hpp', directory / 'flags.json'
    if not made.exists():
        with open(directory / 'lock', 'w') as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return None
            if not made.exists():
                text.write_text(f'#include <{header}>\n')
                output = directory / 'unfinished.gch'
                call = [*compiler, *flags, '-x', 'c++-header', str(text), '-o', str(output)]
                failed = subprocess.run(call, capture_output=True).returncode
                if not failed:
                    output.rename(directory / 'precompiled.hpp.gch')
                # Written last, by renaming: whoever sees this file sees a complete header beside it.
                (directory / 'flags.tmp').write_text(json.dumps(None if failed else flags))
                (directory / 'flags.tmp').rename(made)
    return text if json.loads(made.read_text()) == flags else None


def main(argv: list[str]) -> None:
    split = argv.index('--')
    directory, header, *compiler = argv[:split]
    args = argv[split + 1 :]
    flags = header_flags(args)
    include = precompiled(Path(directory), header, compiler, flags) if flags is not None else None
    if include:
        args = ['-include', str(include), *args]
    os.execvp(compiler[0], [*compiler, *args])


if __name__ == '__main__':
    main(sys.argv[1:])
