"""tools/setup_env.py and tools/environment: what they say when something is missing, and what they rebuild."""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import setup_env
from environment import machine, mmcv, precompiled, progress, uv

ROOT = Path(__file__).resolve().parents[1]
CPU = mmcv.Torch('2.13.0+cpu', '', False, '', '')
GPU = mmcv.Torch('2.13.0+cu130', '13.0', True, '9.0', '/usr/local/cuda')
UV = shutil.which('uv') or shutil.which('uv', path=Path(sys.executable).parent)

needs_gcc = pytest.mark.skipif(not precompiled.is_gcc(['g++']), reason='there is no GNU C++ compiler here')
needs_uv = pytest.mark.skipif(UV is None, reason='uv is not installed; `make setup` does')


# --- one clear message for whatever is missing -----------------------------------------------------------------------


@pytest.mark.parametrize('version', [(3, 8, 0), (3, 9, 18), (3, 13, 0), (4, 11, 0), (2, 7, 18)])
def test_other_pythons_are_refused_with_the_command_to_type(version):
    """Bug: pip fails an hour later in a source build of scipy, because there are no wheels for this Python."""
    with pytest.raises(SystemExit, match=r'need 3\.10 to 3\.12') as error:
        setup_env.check_python(version)
    assert 'make setup PYTHON=python3.11' in str(error.value)
    assert f'Python {version[0]}.{version[1]} ' in str(error.value)


@pytest.mark.parametrize('version', [(3, 10, 0), (3, 11, 7), (3, 12, 99)])
def test_supported_pythons_are_accepted(version):
    """Bug: comparing ``3.10`` as a number or a string puts it below 3.9."""
    assert setup_env.check_python(version) is None


def test_missing_venv_module_names_the_debian_package():
    """Bug: Debian's Python has no ensurepip, and ``python -m venv`` prints a page without an environment."""
    assert machine.missing_modules(['json', 'no_such_module']) == ['no_such_module']
    with pytest.raises(machine.SetupError, match=r'apt-get install python3\.11-venv'):
        machine.check_venv(['ensurepip'], (3, 11, 7))
    machine.check_venv([], (3, 11, 7))


def test_low_disk_is_told_before_anything_is_downloaded(tmp_path):
    """Bug: the download fills the disk and pip ends in a traceback."""
    with pytest.raises(machine.SetupError, match=r'needs about 3 GB in .*, where 1\.0 GB are free'):
        machine.check_disk(machine.GIB, 3, tmp_path, 'The environment', 'Free some space.')
    machine.check_disk(3 * machine.GIB, 3, tmp_path, 'The environment', 'Free some space.')


@pytest.mark.parametrize(
    ('compiler', 'told'),
    [
        (['no-such-compiler'], r'no C\+\+ compiler \(no-such-compiler\)'),
        (['false'], 'false cannot compile a small C\\+\\+ program'),
    ],
)
def test_missing_or_broken_compiler_names_the_package(compiler, told):
    """Bug: mmcv's build dies after a minute with ``command 'c++' failed``."""
    with pytest.raises(machine.SetupError, match=told) as error:
        machine.check_compiler(compiler, sysconfig.get_path('include'))
    assert 'apt-get install build-essential python3-dev' in str(error.value)


@needs_gcc
def test_missing_python_headers_are_told_apart_from_a_missing_compiler(tmp_path):
    """Bug: "install a compiler" is said to somebody who has one and lacks python3-dev."""
    with pytest.raises(machine.SetupError, match=r'Python\.h is missing'):
        machine.check_compiler(['g++'], str(tmp_path))


def test_gpu_without_a_matching_nvcc_is_told_before_the_build(monkeypatch):
    """Bug: torch's build raises "CUDA_HOME is not set", or a version mismatch, at the end of a traceback."""
    monkeypatch.setattr(machine, 'check_compiler', lambda *args: 'c++')
    for nvcc in (None, '12.4'):
        monkeypatch.setattr(machine, 'nvcc_version', lambda home, nvcc=nvcc: nvcc)
        with pytest.raises(machine.SetupError, match=r'Install the CUDA 13\.0 toolkit') as error:
            mmcv.check_tools(GPU)
        assert 'CUDA_VISIBLE_DEVICES= make setup' in str(error.value)
    monkeypatch.setattr(machine, 'nvcc_version', lambda home: '13.1')
    mmcv.check_tools(GPU)
    monkeypatch.setattr(machine, 'nvcc_version', lambda home: None)
    mmcv.check_tools(CPU)


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
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]'))", 'global.cert'),
        ('  cause: client error (Connect)\n  cause: invalid peer certificate: UnknownIssuer', 'global.cert'),
        ("DEBUG error: command 'c++' failed: No such file or directory", 'apt-get install build-essential'),
        ('line\nERROR: something new\n', 'failed: ERROR: something new'),
        ('line\nerror: something new\n  cause: this\n  cause: that', 'failed: error: something new\n  cause: this'),
        ('', 'failed: it gave no reason'),
    ],
)
def test_failures_of_pip_and_uv_are_explained(output, told):
    """Bug: without a network the output says "no version of torch", and people look for another version."""
    assert told in uv.explain(output)


def test_a_failed_build_is_explained():
    """Bug: "command 'ninja' failed" is shown when the kernel killed the compiler, or for an error in a source."""
    text = uv.explain('FAILED: a.o\nc++: fatal error: Killed signal terminated program cc1plus\n')
    assert 'MAX_JOBS=1 make setup' in text
    text = uv.explain('[1/3] ...\nDEBUG nms.cpp:3:1: error: no such thing\nnote\nerror: later\n')
    assert 'nms.cpp:3:1: error: no such thing' in text


def copy_of_the_tools(directory):
    """A checkout small enough to run setup_env in, without an environment."""
    for name in ('constraints.txt', 'pyproject.toml', 'setup.py', 'tools/setup_env.py'):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, directory / name)
    shutil.copytree(ROOT / 'tools/environment', directory / 'tools/environment')
    return directory


def start_setup(directory, **env):
    """Start the script as ``make setup`` does."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PIP_', 'UV_'))}
    clean.update(XDG_CACHE_HOME=str(directory / 'cache'), PIP_CONFIG_FILE=os.devnull, **env)
    command = [sys._base_executable, str(directory / 'tools' / 'setup_env.py')]
    return subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run_setup(directory, **env):
    """Run the script as ``make setup`` does; returns its exit status and all that it printed."""
    process = start_setup(directory, **env)
    return process.wait(), process.stdout.read()


def test_without_a_compiler_the_script_stops_first(tmp_path):
    """Bug: the environment is downloaded for minutes, and only then the missing compiler is noticed."""
    checkout = copy_of_the_tools(tmp_path)
    status, output = run_setup(checkout, PATH=str(tmp_path))
    assert status == 1
    assert 'apt-get install build-essential python3-dev' in output
    assert 'Traceback' not in output
    assert not (checkout / '.venv').exists()


@needs_gcc
@pytest.mark.parametrize('installer', ['pip', pytest.param('uv', marks=needs_uv)])
def test_without_a_network_the_script_stops_with_one_message(installer, tmp_path):
    """Bug: fifteen lines of retries and a traceback, and nothing about the network."""
    checkout = copy_of_the_tools(tmp_path)
    path = [folder for folder in os.environ['PATH'].split(os.pathsep) if not Path(folder, 'uv').exists()]
    if installer == 'uv':
        path.insert(0, str(Path(UV).parent))
    # A closed port of this machine: refused at once.
    closed = dict(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_RETRIES='1', PATH=os.pathsep.join(path))
    status, output = run_setup(checkout, **closed)
    assert status == 1
    assert 'package index cannot be reached' in output
    assert 'Traceback' not in output
    assert re.search(r'setup\.log', output)


@pytest.mark.parametrize('stopped', [False, True])
def test_two_setups_of_a_checkout_wait_for_each_other(stopped, tmp_path):
    """Bug: `make test` and `make train` in two terminals write the same environment."""
    checkout = copy_of_the_tools(tmp_path)
    handle = os.open(checkout, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    process = start_setup(checkout, PATH=str(tmp_path))
    assert 'waiting for another `make setup`' in process.stdout.readline()
    if stopped:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    os.close(handle)
    # Without a compiler on PATH it ends at its first check.
    assert process.wait() == (143 if stopped else 1)
    assert ('apt-get install' in process.stdout.read()) is not stopped


def test_the_script_parses_on_old_pythons():
    """Bug: Python 3.6, the system's on some clusters, shows a SyntaxError rather than the message."""
    import ast

    source = (ROOT / 'tools' / 'setup_env.py').read_text()
    ast.parse(source, feature_version=(3, 6))
    assert '__future__' not in source  # `annotations` came with 3.7


# --- what is kept, and what is made anew -----------------------------------------------------------------------------


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
        {'venv': '/moved/.venv'},
    ],
)
def test_any_change_of_the_environment_is_noticed(change, tmp_path):
    """Bug: torch is exchanged by hand and ``make test`` runs into undefined symbols."""
    stamp = stamp_of(tmp_path)
    now = dict(stamp)
    assert setup_env.up_to_date(stamp, now)
    assert not setup_env.up_to_date(stamp, {**now, **change})
    assert not setup_env.up_to_date({}, now)


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


def test_a_cached_build_that_does_not_run_is_compiled_again_once(monkeypatch):
    """Bug: a wheel in the cache that does not load (another libc, a half copy) is installed again and again."""
    calls, problems = [], []
    fake = SimpleNamespace(
        python='python',
        log='setup.log',
        screen=progress.Screen(steps=1),
        forget=lambda package: calls.append(f'forget {package}'),
        uninstall=lambda package: calls.append(f'uninstall {package}'),
        install=lambda *args, **kwargs: calls.append('install') or said.pop(0),
    )
    monkeypatch.setattr(mmcv, 'problem', lambda python: problems.pop(0))
    said, problems[:] = ['Installed 1 package', 'Building mmcv==2.1.0'], ['undefined symbol', None]
    mmcv.install(CPU, False, fake)
    assert calls == ['install', 'forget mmcv', 'uninstall mmcv', 'install']

    said, problems[:] = ['Installed 1 package', 'Building mmcv==2.1.0'], ['undefined symbol'] * 2
    with pytest.raises(machine.SetupError, match='undefined symbol'):
        mmcv.install(CPU, False, fake)
    said, problems[:] = ['Building mmcv==2.1.0'], ['undefined symbol']
    with pytest.raises(machine.SetupError, match='undefined symbol'):
        mmcv.install(CPU, False, fake)


# --- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('line', ['[1/77] c++ -c a.cpp', '  [1/77] c++ -c a.cpp\n', 'DEBUG [1/77] c++ -c a.cpp'])
def test_progress_is_read_from_what_ninja_prints(line):
    """Bug: uv puts its log level before the lines, and the bar never moves."""
    build = progress.BuildProgress(guess=100)
    assert build.text(1) == 'preparing'
    build.feed(line, 10)
    assert (build.done, build.total) == (1, 77)
    assert build.left(30) == 70  # too early to measure: what the guess leaves


@pytest.mark.parametrize('line', ['[nothing]', 'warning: x [1/7] y', '[notice] 3/4', '[1/7]: error', ''])
def test_other_brackets_are_no_progress(line):
    """Bug: whatever a compiler prints in brackets moves the bar."""
    build = progress.BuildProgress(guess=100)
    build.feed(line, 10)
    assert (build.done, build.total) == (0, 0)


def test_the_estimate_follows_the_pace_of_the_last_files():
    """Bug: the slow beginning, when the header is made, makes the estimate too long until the end."""
    build = progress.BuildProgress(guess=100, window=20)
    for i in range(10):
        build.feed(f'[{i + 1}/81] c++', 30 * i)
    for i in range(31):
        build.feed(f'[{i + 11}/81] c++', 300 + 2 * i)
    assert build.left(360) == pytest.approx(40 * 2, rel=0.1)
    assert '41 of 81 files, about 1 minute left' in build.text(360)
    assert build.left(400) > build.left(360)  # nothing finished for 40 s: it is taking longer


def test_the_time_left_is_shown_from_the_start_of_the_build(monkeypatch):
    """Bug: uv prints nothing for three minutes, and people stop it."""
    told = []
    monkeypatch.setattr(mmcv, 'check_tools', lambda torch: told.append('checked'))
    note = mmcv.watch(CPU, 2, told.append, lambda: told.append('started'))
    assert note('Downloading numpy (16.0MiB)') == 'downloading numpy' and told == []
    note('   Building mmcv==2.1.0')
    assert told[:2] == ['checked', 'started']
    assert re.fullmatch(r'compiling it, once: about \d minutes on 2 cores', told[2])
    assert re.fullmatch(r'1 of 77 files, about \d minutes left', note('DEBUG [1/77] c++ -c a.cpp'))


# --- uv --------------------------------------------------------------------------------------------------------------

PIP_CONFIG = """:env:.find-links='/my wheels /more'
global.find-links='/opt/wheels'
global.index-url='https://mirror/simple'
global.extra-index-url='file:///one\\nfile:///two'
install.constraint='/etc/constraints.txt'
global.cert='/etc/ca.pem'
download.retries='7'
"""


def test_pips_settings_are_handed_to_uv():
    """Bug: behind a mirror or on a cluster pip is configured, and uv goes to pypi.org and fails."""
    found = uv.settings(PIP_CONFIG.replace('/my wheels', '/wheels'), {})
    assert found == {
        'UV_FIND_LINKS': '/wheels,/more',  # a variable wins over a file
        'UV_DEFAULT_INDEX': 'https://mirror/simple',
        'UV_INDEX': 'file:///one file:///two',
        'UV_CONSTRAINT': '/etc/constraints.txt',
        'SSL_CERT_FILE': '/etc/ca.pem',
        'UV_INDEX_STRATEGY': 'unsafe-best-match',
        'UV_SYSTEM_CERTS': '1',
    }
    assert 'UV_INDEX' not in uv.settings(PIP_CONFIG, {'UV_INDEX': 'https://mine'})
    assert uv.settings("global.no-index='true'\n", {})['UV_OFFLINE'] == '1'
    assert 'UV_OFFLINE' not in uv.settings("global.no-index='false'\n", {})


def test_a_read_only_cache_is_done_without(tmp_path):
    """Bug: in a container with a read-only home uv stops with "could not acquire lock"."""
    (tmp_path / 'file').touch()
    assert uv.cache({'UV_CACHE_DIR': str(tmp_path / 'file' / 'cache')}, tmp_path / 'own') == tmp_path / 'own'
    assert uv.cache({'UV_CACHE_DIR': str(tmp_path / 'cache')}, tmp_path / 'own') == tmp_path / 'cache'
    assert uv.cache({'XDG_CACHE_HOME': str(tmp_path)}, tmp_path / 'own') == tmp_path / 'uv'


def runs(state):
    """Whether a process runs, from its file in /proc: it is not gone, nor waiting for init to collect it."""
    try:
        return ' Z ' not in state.read_text()
    except OSError:
        return False


def test_an_interrupt_stops_the_compilers_too(tmp_path):
    """Bug: after Ctrl-C a dozen compilers run on, and write into the environment."""
    pids = []

    def note(line):
        if line.isdigit():
            pids.append(int(line))
            raise KeyboardInterrupt
        return ''

    with pytest.raises(KeyboardInterrupt):
        command = ['sh', '-c', 'sleep 60 & echo $!; wait']
        uv.run(command, progress.Screen(steps=1), tmp_path / 'log', dict(os.environ), note)
    state, end = Path(f'/proc/{pids[0]}/stat'), time.monotonic() + 20
    while runs(state) and time.monotonic() < end:  # the signal has been sent, and may be on its way
        time.sleep(0.01)
    assert not runs(state)


def test_output_without_a_final_newline_is_kept(tmp_path):
    """Bug: the last line, which says what failed, is lost."""
    screen = progress.Screen(steps=1)
    status, output = uv.run(['sh', '-c', 'echo one; printf two; exit 3'], screen, tmp_path / 'log', dict(os.environ))
    assert (status, output) == (3, 'one\ntwo')
    assert (tmp_path / 'log').read_text().endswith('one\ntwo\n')


BACKEND = """
import os, zipfile
import torch

def build_wheel(directory, config_settings=None, metadata_directory=None):
    with open(os.environ['BUILDS'], 'a') as log:
        log.write('built\\n')
    name = 'mmcv' if os.environ.get('MMCV_WITH_OPS') == os.environ['OPS'] else 'mmcv_lite'
    info, wheel = f'{name}-2.1.0.dist-info', f'{name}-2.1.0-py3-none-any.whl'
    with zipfile.ZipFile(os.path.join(directory, wheel), 'w') as out:
        out.writestr('mmcv.py', f'TORCH = {torch.VERSION!r}\\n')
        out.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\\nName: {name}\\nVersion: 2.1.0\\n')
        out.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
        out.writestr(f'{info}/RECORD', '')
    return wheel
"""


def fake_wheel(directory, name, version):
    info = f'{name}-{version}.dist-info'
    with zipfile.ZipFile(directory / f'{name}-{version}-py3-none-any.whl', 'w') as out:
        out.writestr(f'{name}.py', f'VERSION = {version!r}\n')
        out.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        out.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        out.writestr(f'{info}/RECORD', '')


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Offline: small packages by the names of the real ones, two versions of torch, and an mmcv to be built."""
    links = tmp_path / 'links'
    (links / 'mmcv-2.1.0').mkdir(parents=True)
    for name in ('addict', 'mmengine', 'numpy', 'packaging', 'pillow', 'pyyaml', 'yapf'):
        fake_wheel(links, name, '1.0')
    (tmp_path / 'elsewhere').mkdir()
    fake_wheel(links, 'torch', '1.0+cpu')
    fake_wheel(tmp_path / 'elsewhere', 'torch', '2.0+cpu')
    source = links / 'mmcv-2.1.0'
    (source / 'backend.py').write_text(BACKEND)
    (source / 'PKG-INFO').write_text('Metadata-Version: 1.0\nName: mmcv\nVersion: 2.1.0\n')
    (source / 'pyproject.toml').write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
    )
    with tarfile.open(links / 'mmcv-2.1.0.tar.gz', 'w:gz') as out:
        out.add(source, source.name)
    for name in [name for name in os.environ if name.startswith(('PIP_', 'UV_'))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('UV_OFFLINE', '1')
    monkeypatch.setenv('UV_FIND_LINKS', str(links))
    monkeypatch.setenv('BUILDS', str(tmp_path / 'builds'))
    monkeypatch.setenv('OPS', '1')
    monkeypatch.setenv('PATH', str(Path(UV).parent), prepend=os.pathsep)
    monkeypatch.setattr(mmcv, 'check_tools', lambda torch: None)
    monkeypatch.setattr(mmcv, 'problem', lambda python: None)
    fake_wheel(links, 'mmengine', '0.9')
    return tmp_path


def checkout(folder, name):
    """An environment of its own that shares uv's cache, and how to tell which torch its mmcv was built for."""
    subprocess.run([sys._base_executable, '-m', 'venv', '--without-pip', folder / name], check=True)
    python = folder / name / 'bin' / 'python'
    (folder / 'constraints.txt').write_text('mmengine==0.9\n')
    made = uv.Uv(python, folder / 'constraints.txt', folder / 'cache', progress.Screen(steps=1), folder / 'log')
    return made, lambda: subprocess.run(
        [python, '-c', 'import mmcv; print(mmcv.TORCH)'], capture_output=True, text=True
    )


def builds(folder):
    return len((folder / 'builds').read_text().splitlines())


@needs_uv
def test_mmcv_is_built_for_the_installed_torch_and_cached_for_each(fakes):
    """Bug: an mmcv that was compiled for another torch imports with undefined symbols; or each clone compiles it."""
    first, torch_of_first = checkout(fakes, 'first')
    first.install('torch==1.0+cpu')
    mmcv.install(CPU, False, first)
    assert torch_of_first().stdout == '1.0+cpu\n' and builds(fakes) == 1
    version = subprocess.run([first.python, '-c', 'import mmengine; print(mmengine.VERSION)'], capture_output=True)
    assert version.stdout == b'0.9\n'  # the constraints hold

    second, torch_of_second = checkout(fakes, 'second')
    second.install('torch==1.0+cpu')
    mmcv.install(CPU, False, second)
    assert torch_of_second().stdout == '1.0+cpu\n' and builds(fakes) == 1

    # By hand, from an index that setup does not know.
    second.install('--find-links', fakes / 'elsewhere', 'torch==2.0+cpu')
    mmcv.install(CPU, True, second)
    assert torch_of_second().stdout == '2.0+cpu\n' and builds(fakes) == 2
    second.install('torch==1.0+cpu')
    mmcv.install(CPU, True, second)
    assert torch_of_second().stdout == '1.0+cpu\n' and builds(fakes) == 2

    mmcv.install(GPU, True, first)
    assert builds(fakes) == 3
    mmcv.install(GPU._replace(archs='8.0;9.0'), True, first)
    assert builds(fakes) == 4
    mmcv.install(GPU, True, first)
    assert builds(fakes) == 4
    assert torch_of_first().stdout == '1.0+cpu\n'


@needs_uv
def test_mmcv_without_operations_is_refused(fakes, monkeypatch):
    """Bug: MMCV_WITH_OPS is lost, and mmcv-lite is installed, whose first operation fails in the middle of a run."""
    monkeypatch.setenv('OPS', 'another value')
    made, _ = checkout(fakes, 'venv')
    made.install('torch==1.0+cpu')
    with pytest.raises(machine.SetupError, match='mmcv-lite'):
        mmcv.install(CPU, False, made)
    assert setup_env.installed('mmcv', next((fakes / 'venv').glob('lib/python3*/site-packages'))) is None


def test_mmcv_is_compiled_with_pythons_own_optimisation(tmp_path, monkeypatch):
    """Bug: CFLAGS=-g0 replaces Python's -O3, and every operation of mmcv runs several times slower."""
    from setuptools._distutils import ccompiler
    from setuptools._distutils import sysconfig as flags

    def command():
        compiler = ccompiler.new_compiler()
        flags.customize_compiler(compiler)
        return [*compiler.compiler_so, '|', *getattr(compiler, 'compiler_so_cxx', [])]

    monkeypatch.setenv('CPPFLAGS', '-DMINE')
    before = command()
    monkeypatch.setenv('CPPFLAGS', mmcv.build_env(dict(os.environ), str(tmp_path))['CPPFLAGS'])
    after = command()
    assert [flag for flag in after if flag != '-g0'] == before and '-DMINE' in before
    assert after[after.index('-DMINE') + 1] == '-g0'
    last = [flag for flag in after[: after.index('|')] if re.fullmatch(r'-g\d?', flag)][-1]
    assert last == '-g0'


def test_mmcv_is_compiled_in_a_fresh_folder(tmp_path, monkeypatch):
    """Bug: uv builds a source where it built it before, and ninja links the objects of another torch."""
    from setuptools import Distribution

    monkeypatch.setenv('DIST_EXTRA_CONFIG', mmcv.build_env({}, str(tmp_path))['DIST_EXTRA_CONFIG'])
    distribution = Distribution()
    distribution.parse_config_files()
    assert distribution.get_command_obj('build').build_base == f'{tmp_path}/build'


# --- the precompiled header ------------------------------------------------------------------------------------------

HEAVY = '#ifndef HEAVY\n#define HEAVY\n#include <vector>\ninline int twice(int x) { return 2 * x; }\n#endif\n'


def compile_a(directory, output, *flags):
    command = ['g++', '-O2', '-I', '.', *flags, '-c', 'a.cpp', '-o', output]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (directory / output).read_bytes()


@pytest.fixture
def project(tmp_path):
    """A project of one file and one header, and the flags that include the header."""
    (tmp_path / 'heavy.hpp').write_text(HEAVY)
    source = '#include <heavy.hpp>\nint run(int x) { return twice(x) + (int)std::vector<int>(SIZE).size(); }\n'
    (tmp_path / 'a.cpp').write_text(source)
    return tmp_path, precompiled.include_flags(tmp_path, ['g++'], '#include <heavy.hpp>\n')


@needs_gcc
def test_a_precompiled_header_compiles_to_the_same_object(project):
    """Bug: the precompiled header changes what is compiled; or it is never used."""
    directory, include = project
    before = compile_a(directory, 'before.o', '-DSIZE=3', *include)  # nobody waits for the header
    assert precompiled.precompile(directory, ['g++'], f'-O2 -I {directory} -DSIZE=3').wait() == 0
    # Whoever reads this text rather than the precompiled header has no HEAVY.
    (directory / 'heavy.hpp').write_text('#ifndef HEAVY\n#error read again\n#endif\n')
    after = compile_a(directory, 'after.o', '-DSIZE=3', *include)
    (directory / 'heavy.hpp').write_text(HEAVY)
    assert before == after == compile_a(directory, 'plain.o', '-DSIZE=3')


@needs_gcc
def test_other_flags_do_without_the_precompiled_header(project):
    """Bug: a header that was precompiled with other macros is used all the same."""
    directory, include = project
    precompiled.precompile(directory, ['g++'], f'-O2 -I {directory} -DSIZE=3').wait()
    other = compile_a(directory, 'other.o', '-DSIZE=5', *include)
    assert other == compile_a(directory, 'plain.o', '-DSIZE=5')
    assert other != compile_a(directory, 'plain3.o', '-DSIZE=3')


@needs_gcc
def test_a_header_that_cannot_be_precompiled_is_read_as_text(project):
    """Bug: the build fails, or uses half a header, because precompiling failed."""
    directory, include = project
    assert precompiled.precompile(directory, ['g++'], f'-I {directory} --no-such-flag').wait() != 0
    assert not (directory / 'header.hpp.gch').exists()
    assert compile_a(directory, 'a.o', '-DSIZE=3', *include) == compile_a(directory, 'plain.o', '-DSIZE=3')


def test_no_precompiled_header_where_it_would_fail(tmp_path):
    """Bug: distutils splits CPPFLAGS at the space of a path; clang rejects what g++ ignores."""
    (tmp_path / 'my files').mkdir()
    assert precompiled.include_flags(tmp_path / 'my files', ['g++']) == []
    assert precompiled.include_flags(tmp_path, ['false']) == []
    assert precompiled.include_flags(tmp_path, ['no-such-compiler']) == []
