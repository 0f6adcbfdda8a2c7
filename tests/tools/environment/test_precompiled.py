"""tools/environment/precompiled.py: a header makes a build faster and changes nothing else."""

import os
import subprocess
import sys
import time

import pytest
from environment import precompiled
from support.environments import needs_gcc

HEAVY = '#ifndef HEAVY\n#define HEAVY\n#include <vector>\ninline int twice(int x) { return 2 * x; }\n#endif\n'


def compile_a(directory, output, *flags):
    command = ['g++', '-O2', '-I', '.', *flags, '-c', 'a.cpp', '-o', output]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (directory / output).read_bytes()


@pytest.fixture
def project(tmp_path):
    """A project of one file and one header that includes another, and the flags that include it."""
    (tmp_path / 'heavy.hpp').write_text(HEAVY)
    (tmp_path / 'header.hpp').write_text('#include <heavy.hpp>\n')
    source = '#include <heavy.hpp>\nint run(int x) { return twice(x) + (int)std::vector<int>(SIZE).size(); }\n'
    (tmp_path / 'a.cpp').write_text(source)
    return tmp_path, ['-include', str(tmp_path / 'header.hpp')]


@needs_gcc
def test_a_precompiled_header_compiles_to_the_same_object(project):
    """Bug: the precompiled header changes what is compiled; or it is never used."""
    directory, include = project
    before = compile_a(directory, 'before.o', '-DSIZE=3', *include)  # nobody waits for the header
    precompiled.precompile(directory / 'header.hpp', ['g++', '-O2', '-I', directory, '-DSIZE=3'])
    # Whoever reads this text rather than the precompiled header has no HEAVY.
    (directory / 'heavy.hpp').write_text('#ifndef HEAVY\n#error read again\n#endif\n')
    after = compile_a(directory, 'after.o', '-DSIZE=3', *include)
    (directory / 'heavy.hpp').write_text(HEAVY)
    assert before == after == compile_a(directory, 'plain.o', '-DSIZE=3')


@needs_gcc
def test_other_flags_do_without_the_precompiled_header(project):
    """Bug: a header that was precompiled with other macros is used all the same."""
    directory, include = project
    precompiled.precompile(directory / 'header.hpp', ['g++', '-O2', '-I', directory, '-DSIZE=3'])
    assert (directory / 'header.hpp.gch').exists()
    other = compile_a(directory, 'other.o', '-DSIZE=5', *include)
    assert other == compile_a(directory, 'plain.o', '-DSIZE=5')
    assert other != compile_a(directory, 'plain3.o', '-DSIZE=3')


@needs_gcc
def test_a_header_that_cannot_be_precompiled_is_read_as_text(project):
    """Bug: the build fails, or uses half a header, because precompiling failed."""
    directory, include = project
    precompiled.precompile(directory / 'header.hpp', ['g++', '-I', directory, '--no-such-flag'])
    assert not (directory / 'header.hpp.gch').exists()
    assert compile_a(directory, 'a.o', '-DSIZE=3', *include) == compile_a(directory, 'plain.o', '-DSIZE=3')


@needs_gcc
def test_the_header_is_precompiled_with_the_flags_of_extensions(tmp_path, monkeypatch):
    """Bug: a flag is missing, and g++ reads the text without a word, for three minutes more. -H prints what it uses."""
    monkeypatch.setenv('CPPFLAGS', '-g0')
    monkeypatch.setenv('CXX', 'g++')
    (tmp_path / 'a.cpp').write_text('int a;\n')
    with precompiled.included(tmp_path, sys.executable, os.environ, '#include <vector>\n') as include:
        header, end = tmp_path / 'header.hpp.gch', time.monotonic() + 300
        while not header.exists() and time.monotonic() < end:
            time.sleep(0.05)
        command = [*precompiled.build_command(), *include, '-H', '-c', 'a.cpp', '-o', 'a.o']
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert f'! {header}' in done.stderr.splitlines()


def test_no_precompiled_header_where_it_would_fail(tmp_path):
    """Bug: distutils splits CPPFLAGS at the space of a path; clang rejects what g++ ignores."""
    folder = tmp_path / 'my files'
    folder.mkdir()
    with precompiled.included(folder, sys.executable, os.environ) as include:
        assert include == []
    compiler = tmp_path / 'g++'
    compiler.write_text('#!/bin/sh\nfor last; do true; done\nprintf "CPCH of clang" > "$last"\n')
    compiler.chmod(0o755)
    for command in (['false'], [str(compiler)]):
        precompiled.precompile(tmp_path / 'header.hpp', command)
    assert list(tmp_path.rglob('*.gch')) == []
