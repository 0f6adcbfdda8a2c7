"""tools/setup_env.py and tools/cxx_pch.py: what they say when something is missing, and what they rebuild."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


setup_env = load('setup_env')
cxx_pch = load('cxx_pch')

CPU = setup_env.Torch('2.13.0+cpu', '', False, '', '')
GPU = setup_env.Torch('2.13.0+cu130', '13.0', True, '9.0', '/usr/local/cuda')

needs_gcc = pytest.mark.skipif(
    shutil.which('g++') is None or not setup_env.is_gcc(['g++']), reason='there is no GNU C++ compiler here'
)


# --- one clear message for whatever is missing -----------------------------------------------------------------------


@pytest.mark.parametrize('version', [(3, 8, 0), (3, 9, 18), (3, 13, 0), (4, 11, 0), (2, 7, 18)])
def test_other_pythons_are_refused_with_the_command_to_type(version):
    """Bug: pip fails an hour later in a source build of scipy, because there are no wheels for this Python."""
    with pytest.raises(setup_env.SetupError, match=r'needs?|need 3\.10 to 3\.12') as error:
        setup_env.check_python(version)
    assert 'make setup PYTHON=python3.11' in str(error.value)
    assert f'Python {version[0]}.{version[1]} ' in str(error.value)


@pytest.mark.parametrize('version', [(3, 10, 0), (3, 11, 7), (3, 12, 99)])
def test_supported_pythons_are_accepted(version):
    """Bug: comparing ``3.10`` as a number or a string puts it below 3.9."""
    assert setup_env.check_python(version) is None


def test_missing_venv_module_names_the_debian_package():
    """Bug: Debian's Python has no ensurepip, and ``python -m venv`` prints a page without an environment."""
    assert setup_env.missing_modules(['json', 'no_such_module']) == ['no_such_module']
    with pytest.raises(setup_env.SetupError, match=r'apt-get install python3\.11-venv'):
        setup_env.check_venv(['ensurepip'], (3, 11, 7))
    setup_env.check_venv([], (3, 11, 7))


def test_low_disk_is_told_before_anything_is_downloaded(tmp_path):
    """Bug: the download fills the disk and pip ends in a traceback."""
    with pytest.raises(setup_env.SetupError, match=r'needs about 3 GB in .*, where 1\.0 GB are free'):
        setup_env.check_disk(setup_env.GIB, 3, tmp_path, 'The environment', 'Free some space.')
    setup_env.check_disk(3 * setup_env.GIB, 3, tmp_path, 'The environment', 'Free some space.')


@pytest.mark.parametrize(
    ('compiler', 'told'),
    [
        (['no-such-compiler'], r'no C\+\+ compiler \(no-such-compiler\)'),
        (['false'], 'false cannot compile a small C\\+\\+ program'),
    ],
)
def test_missing_or_broken_compiler_names_the_package(compiler, told):
    """Bug: mmcv's build dies after a minute with ``command 'c++' failed``."""
    with pytest.raises(setup_env.SetupError, match=told) as error:
        setup_env.check_compiler(compiler, sysconfig.get_path('include'))
    assert 'apt-get install build-essential python3-dev' in str(error.value)


@needs_gcc
def test_missing_python_headers_are_told_apart_from_a_missing_compiler(tmp_path):
    """Bug: "install a compiler" is said to somebody who has one and lacks python3-dev."""
    with pytest.raises(setup_env.SetupError, match=r'Python\.h is missing'):
        setup_env.check_compiler(['g++'], str(tmp_path))


def test_gpu_without_a_matching_nvcc_is_told_before_the_build():
    """Bug: torch's build raises "CUDA_HOME is not set", or a version mismatch, at the end of a traceback."""
    for nvcc in (None, '12.4'):
        with pytest.raises(setup_env.SetupError, match=r'Install the CUDA 13\.0 toolkit') as error:
            setup_env.check_cuda_compiler(GPU, nvcc)
        assert 'CUDA_VISIBLE_DEVICES= make setup' in str(error.value)
    setup_env.check_cuda_compiler(GPU, '13.1')
    setup_env.check_cuda_compiler(CPU, None)


NETWORK = """WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(': Failed to establish
 a new connection: [Errno -3] Temporary failure in name resolution')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0
"""


@pytest.mark.parametrize(
    ('output', 'told'),
    [
        (NETWORK, 'cannot be reached'),
        ('ERROR: No matching distribution found for torch==2.13.0\n', 'has no torch==2.13.0 for this machine'),
        ('OSError: [Errno 28] No space left on device\n', 'disk is full'),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", 'global.cert'),
        ('line\nERROR: something new\n', 'pip failed: ERROR: something new'),
        ('', 'pip failed: it gave no reason'),
    ],
)
def test_pips_failures_are_explained(output, told):
    """Bug: without a network pip says "no matching distribution", and people look for another version."""
    assert told in setup_env.explain_pip(output)


def test_a_build_out_of_memory_is_explained():
    """Bug: "command 'ninja' failed" is shown when the kernel killed the compiler."""
    text = setup_env.explain_build('FAILED: a.o\nc++: fatal error: Killed signal terminated program cc1plus\n')
    assert 'MAX_JOBS=1 make setup' in text
    text = setup_env.explain_build('[1/3] ...\nnms.cpp:3:1: error: no such thing\nnote\nerror: later\n')
    assert 'nms.cpp:3:1: error: no such thing' in text


def copy_of_the_tools(directory):
    """A checkout small enough to run setup_env in, without an environment."""
    for name in (
        'constraints.txt',
        'pyproject.toml',
        'setup.py',
        'swinv2_mm/models/kernels/csrc/window_attention.cpp',
        'tools/setup_env.py',
        'tools/cxx_pch.py',
    ):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    return directory


def run_setup(directory, **env):
    """Run the script as ``make setup`` does; returns its exit status and all that it printed."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith('PIP_')}
    clean.update(XDG_CACHE_HOME=str(directory / 'cache'), PIP_CONFIG_FILE=os.devnull, **env)
    command = [sys._base_executable, str(directory / 'tools' / 'setup_env.py')]
    done = subprocess.run(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def test_without_a_compiler_the_script_stops_first(tmp_path):
    """Bug: the environment is downloaded for minutes, and only then the missing compiler is noticed."""
    checkout = copy_of_the_tools(tmp_path)
    status, output = run_setup(checkout, PATH=str(tmp_path))
    assert status == 1
    assert 'apt-get install build-essential python3-dev' in output
    assert 'Traceback' not in output
    assert not (checkout / '.venv').exists()


@needs_gcc
def test_without_a_network_the_script_stops_with_one_message(tmp_path):
    """Bug: pip's fifteen lines of retries and a traceback, and nothing about the network."""
    checkout = copy_of_the_tools(tmp_path)
    # A closed port of this machine: refused at once.
    status, output = run_setup(checkout, PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='1')
    assert status == 1
    assert 'package index cannot be reached' in output
    assert 'Traceback' not in output
    assert re.search(r'setup\.log', output)


def test_the_script_parses_on_old_pythons():
    """Bug: Python 3.6, the system's on some clusters, shows a SyntaxError rather than the message."""
    import ast

    source = (ROOT / 'tools' / 'setup_env.py').read_text()
    ast.parse(source, feature_version=(3, 6))
    assert '__future__' not in source  # `annotations` came with 3.7


# --- what is kept, and what is made anew -----------------------------------------------------------------------------


def test_wheels_are_kept_apart_by_all_that_they_depend_on():
    """Bug: an mmcv that was compiled for another torch imports with undefined symbols."""
    keys = [
        setup_env.wheel_key(CPU, 'cp311', 'x86_64'),
        setup_env.wheel_key(CPU._replace(version='2.12.0+cpu'), 'cp311', 'x86_64'),
        setup_env.wheel_key(CPU._replace(version='2.13.0+cu130'), 'cp311', 'x86_64'),
        setup_env.wheel_key(CPU, 'cp312', 'x86_64'),
        setup_env.wheel_key(CPU, 'cp311', 'aarch64'),
        setup_env.wheel_key(GPU, 'cp311', 'x86_64'),
        setup_env.wheel_key(GPU._replace(archs='8.0;9.0'), 'cp311', 'x86_64'),
    ]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r'[\w.+-]+', key) for key in keys)  # each is a directory's name


def stamp_of(venv):
    return {'inputs': 'abc', 'torch': '2.13.0+cpu', 'mmcv': '2.1.0 7 8', 'venv': str(venv)}


@pytest.mark.parametrize(
    'change',
    [
        {'inputs': 'another constraints.txt'},
        {'torch': '2.12.0+cpu'},
        {'torch': None},
        {'mmcv': '2.1.0 9 9'},
        {'mmcv': None},
        {'venv': Path('/moved/.venv')},
    ],
)
def test_any_change_of_the_environment_is_noticed(change, tmp_path):
    """Bug: torch is exchanged by hand and ``make test`` runs into undefined symbols."""
    stamp = stamp_of(tmp_path)
    now = {**stamp, 'venv': tmp_path}
    assert setup_env.up_to_date(stamp, **now)
    assert not setup_env.up_to_date(stamp, **{**now, **change})
    assert not setup_env.up_to_date({}, **now)


def make_site(directory, torch='2.13.0+cpu', mmcv='2.1.0', compiled=b'for this torch'):
    for name, version in (('torch', torch), ('mmcv', mmcv)):
        (directory / f'{name}-{version}.dist-info').mkdir(parents=True)
    (directory / 'mmcv').mkdir()
    (directory / 'mmcv' / '_ext.cpython-311-x86_64-linux-gnu.so').write_bytes(compiled)
    return directory


def test_versions_are_read_without_importing(tmp_path):
    """Bug: importing torch to learn its version makes every ``make`` two seconds slower. Or torchvision's is taken."""
    site = make_site(tmp_path)
    (site / 'torchvision-0.1.dist-info').mkdir()
    assert setup_env.installed('torch', site) == '2.13.0+cpu'
    assert setup_env.installed('scipy', site) is None


def test_a_stale_mmcv_of_the_same_version_is_noticed(tmp_path):
    """Bug: ``pip install mmcv`` brings a wheel from pip's cache that was compiled for another torch."""
    right = setup_env.mmcv_installed(make_site(tmp_path / 'a'))
    other = setup_env.mmcv_installed(make_site(tmp_path / 'b', compiled=b'for another torch'))
    assert right.startswith('2.1.0 ')
    assert right != other
    (tmp_path / 'a' / 'mmcv' / '_ext.cpython-311-x86_64-linux-gnu.so').unlink()
    assert setup_env.mmcv_installed(tmp_path / 'a') is None


def test_a_torch_installed_by_hand_is_kept_and_our_own_follows_the_pin():
    """Bug: the build of torch that fits an old driver is replaced by every ``make test``; or a new pin is ignored."""
    choose = setup_env.torch_to_install
    ours = {'torch': '2.13.0+cpu'}
    assert choose('2.13.0', None, {}) == ('2.13.0', False)
    assert choose('2.13.0', '2.13.0+cpu', {}) == ('2.13.0', False)
    assert choose('2.13.0', '2.9.1+cu126', ours) == ('2.9.1+cu126', True)
    assert choose('2.13.0', '2.9.1+cu126', {'torch': '2.9.1+cu126', 'own_torch': True}) == ('2.9.1+cu126', True)
    assert choose('2.14.0', '2.13.0+cpu', ours) == ('2.14.0', False)


def test_another_torch_brings_its_own_triton():
    """Bug: `make setup` cannot resolve the pins beside an older CUDA build of torch, which requires another Triton."""
    pins = setup_env.ROOT.joinpath('constraints.txt').read_text()
    assert re.search(r'^triton==\d', setup_env.constraints_with(pins, '2.13.0', own=False), re.M)
    kept = setup_env.constraints_with(pins, '2.9.1+cu126', own=True)
    assert 'torch==2.9.1+cu126\n' in kept and 'triton==' not in kept
    assert len(kept.splitlines()) == len(pins.splitlines()) - 1


def test_a_kept_wheel_that_does_not_run_is_compiled_anew_once(tmp_path, monkeypatch):
    """Bug: a wheel in the cache that does not load (another libc, a half copy) is installed again and again."""
    calls, problems = [], ['undefined symbol', None]
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    target = setup_env.wheels_dir(os.environ) / setup_env.wheel_key(
        CPU, setup_env.python_tag(), setup_env.platform.machine()
    )
    target.mkdir(parents=True)
    (target / 'mmcv-2.1.0-cp311.whl').touch()
    monkeypatch.setattr(setup_env, 'prepare_build', lambda torch: None)
    monkeypatch.setattr(setup_env, 'build_mmcv', lambda torch, target, screen: calls.append('build'))
    monkeypatch.setattr(setup_env, 'pip', lambda screen, *args: calls.append('install'))
    monkeypatch.setattr(setup_env, 'mmcv_problem', lambda: problems.pop(0))
    setup_env.install_mmcv(CPU, setup_env.Screen())
    assert calls == ['install', 'build', 'install']

    problems[:] = ['undefined symbol'] * 2
    with pytest.raises(setup_env.SetupError, match='undefined symbol'):
        setup_env.install_mmcv(CPU, setup_env.Screen())


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('line', ['[1/77] c++ -c a.cpp', '  [1/77] c++ -c a.cpp\n'])
def test_progress_is_read_from_what_ninja_prints(line):
    """Bug: newer versions of pip indent the lines."""
    progress = setup_env.BuildProgress(guess=100)
    assert progress.text(1) == 'preparing'
    progress.feed(line, 10)
    assert (progress.done, progress.total) == (1, 77)
    assert progress.left(30) == 70  # too early to measure: what the guess leaves


@pytest.mark.parametrize('line', ['[nothing]', 'warning: x [1/7] y', '[notice] 3/4', '[1/7]: error', ''])
def test_other_brackets_are_no_progress(line):
    """Bug: whatever a compiler prints in brackets moves the bar."""
    progress = setup_env.BuildProgress(guess=100)
    progress.feed(line, 10)
    assert (progress.done, progress.total) == (0, 0)


def test_the_estimate_follows_the_pace_of_the_last_files():
    """Bug: the slow beginning, when the header is made, makes the estimate too long until the end."""
    progress = setup_env.BuildProgress(guess=100, window=20)
    for i in range(10):
        progress.feed(f'[{i + 1}/81] c++', 30 * i)
    for i in range(31):
        progress.feed(f'[{i + 11}/81] c++', 300 + 2 * i)
    assert progress.left(360) == pytest.approx(40 * 2, rel=0.1)
    assert '41 of 81 files, about 1 minute left' in progress.text(360)
    assert progress.left(400) > progress.left(360)  # nothing finished for 40 s: it is taking longer


# --- the compiler wrapper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'args',
    [
        ['-dumpfullversion', '-dumpversion'],
        ['-shared', 'a.o', '-o', 'a.so'],
        ['-E', '-c', 'a.cpp'],
        ['a.cpp', '-o', 'a.so'],
        ['-x', 'c++-header', '-c', 'a.cpp', '-o', 'a.o'],
        ['-c', 'a.c', '-o', 'a.o'],
        ['-c', 'a.cpp', 'b.cpp'],
        ['-c', '-include', 'mine.hpp', 'a.cpp'],
        ['@arguments', '-c', 'a.cpp'],
    ],
)
def test_only_the_compilation_of_one_file_gets_a_header(args):
    """Bug: linking, preprocessing or a C file fails on a C++ header that nobody asked for."""
    assert cxx_pch.header_flags(args) is None


def test_flags_of_the_header_are_those_of_the_call_without_its_files():
    """Bug: the header is compiled with other flags, so that gcc silently ignores it; or it overwrites the object."""
    args = '-MMD -MF a.o.d -O3 -DX=1 -D Y -I inc.cpp -isystem dir -c a.cpp -o a.o -std=c++17'.split()
    assert cxx_pch.header_flags(args) == '-O3 -DX=1 -D Y -I inc.cpp -isystem dir -std=c++17'.split()


HEAVY = '#ifndef HEAVY\n#define HEAVY\n#include <vector>\ninline int twice(int x) { return 2 * x; }\n#endif\n'


def test_mmcv_is_compiled_with_pythons_own_optimisation():
    """Bug: CFLAGS=-g0 replaces Python's -O3, and every operation of mmcv runs several times slower."""
    env = setup_env.build_env({'PATH': '/bin'}, '-DNDEBUG -g -O3')
    assert env['CFLAGS'] == env['CXXFLAGS'] == '-DNDEBUG -g -O3 -g0'
    assert setup_env.build_env({'CFLAGS': '-O1 -march=native'}, '-g -O3')['CFLAGS'] == '-O1 -march=native -g0'
    assert env['MMCV_WITH_OPS'] == '1' and env['PATH'].endswith('/bin')


@pytest.fixture
def wrapped(tmp_path):
    """A project of one file and one header, and the wrapper that precompiles the header."""
    (tmp_path / 'heavy.hpp').write_text(HEAVY)
    source = '#include <heavy.hpp>\nint run(int x) { return twice(x) + (int)std::vector<int>(SIZE).size(); }\n'
    (tmp_path / 'a.cpp').write_text(source)
    wrapper = setup_env.write_wrapper(tmp_path / 'compiler', ['g++'], 'heavy.hpp')
    return tmp_path, str(wrapper)


def compile_with(compiler, directory, output, size=3):
    command = [compiler, '-O2', '-I', '.', f'-DSIZE={size}', '-MMD', '-MF', f'{output}.d', '-c', 'a.cpp', '-o', output]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (directory / output).read_bytes()


@needs_gcc
def test_the_wrapper_compiles_to_the_same_object(wrapped):
    """Bug: the precompiled header changes what is compiled."""
    directory, wrapper = wrapped
    first = compile_with(wrapper, directory, 'first.o')
    assert (directory / 'compiler' / 'precompiled.hpp.gch').exists()
    # Whoever reads this text rather than the precompiled header has no HEAVY.
    (directory / 'heavy.hpp').write_text('#ifndef HEAVY\n#error read again\n#endif\n')
    second = compile_with(wrapper, directory, 'second.o')
    (directory / 'heavy.hpp').write_text(HEAVY)
    plain = compile_with('g++', directory, 'plain.o')
    assert first == second == plain


@needs_gcc
def test_other_flags_do_without_the_header(wrapped):
    """Bug: a header that was precompiled with other macros is used all the same."""
    directory, wrapper = wrapped
    compile_with(wrapper, directory, 'first.o')
    other = compile_with(wrapper, directory, 'other.o', size=5)
    assert other == compile_with('g++', directory, 'plain.o', size=5)
    assert other != compile_with('g++', directory, 'plain3.o')


@needs_gcc
def test_a_header_that_cannot_be_precompiled_is_done_without(tmp_path):
    """Bug: the build fails because of a header that the sources do not need."""
    (tmp_path / 'a.cpp').write_text('int run() { return SIZE; }\n')
    wrapper = setup_env.write_wrapper(tmp_path / 'compiler', ['g++'], 'no/such/header.hpp')
    assert compile_with(str(wrapper), tmp_path, 'a.o') == compile_with('g++', tmp_path, 'plain.o')


@needs_gcc
def test_the_wrapper_passes_other_calls_and_their_status_through(wrapped):
    """Bug: torch asks the wrapper for the compiler's version, or a failed compilation looks like a success."""
    directory, wrapper = wrapped
    version = [subprocess.run([name, '-dumpfullversion'], capture_output=True).stdout for name in (wrapper, 'g++')]
    assert version[0] == version[1] != b''
    (directory / 'bad.cpp').write_text('int run( {\n')
    done = subprocess.run([wrapper, '-c', 'bad.cpp', '-o', 'bad.o'], cwd=directory, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'bad.cpp:1' in done.stderr


@needs_gcc
def test_while_one_call_makes_the_header_others_go_on_without_it(wrapped):
    """Bug: all cores wait for one header, or two calls write it at once."""
    import fcntl

    directory, wrapper = wrapped
    with open(directory / 'compiler' / 'lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compile_with(wrapper, directory, 'a.o')
        assert not (directory / 'compiler' / 'flags.json').exists()


def test_no_wrapper_where_its_path_has_a_space(tmp_path):
    """Bug: distutils splits CXX at the space and runs half a path."""
    assert setup_env.write_wrapper(tmp_path / 'my files', ['g++'], 'vector') is None
