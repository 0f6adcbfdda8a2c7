"""doctor.py: what it reports on machines where something is missing or broken."""

import importlib
import re
import subprocess
import sys

import pytest
from support import ROOT, load_script

from swinv2_mm import doctor

SYMBOL = 'ImportError: /x/mmcv/_ext.so: undefined symbol: _ZN3c106detail14torchCheckFailE'
VERSIONS = {
    name: line.tested for name, line in doctor.TABLE.items() if line.check in (doctor.package, doctor.setuptools)
}
MODULES = {'mmdet': 'mmdet.models', 'mmsegmentation': 'mmseg.models', 'opencv-python': 'cv2'}


def line_that(check, name):
    return doctor.TABLE[name]._replace(check=check)


@pytest.fixture
def machine(monkeypatch):
    """A machine where all is well, and a function that breaks things on it and runs the doctor."""
    versions, problems = dict(VERSIONS), {}
    probe = {'returncode': 0, 'stdout': 'CUDA not available False\n', 'stderr': ''}

    def import_problem(module):
        return problems.get(module) or problems.get(module.split('.')[0])

    monkeypatch.setattr(doctor, 'version_of', lambda name: versions.get(name))
    monkeypatch.setattr(doctor, 'import_problem', import_problem)
    monkeypatch.setattr(doctor, 'load_operations', lambda: subprocess.CompletedProcess([], **probe))
    for name, found in {'swinv2_mm': 'builds and runs', 'GPU': 'none', 'Python': '3.11.7'}.items():
        monkeypatch.setitem(doctor.TABLE, name, line_that(lambda *_, found=found: doctor.Row(found), name))

    def run(absent=(), problem=None, version=None, ext=None):
        for name in absent:
            versions.pop(name, None)
            problems[MODULES.get(name, name).split('.')[0]] = f"ModuleNotFoundError: No module named '{name}'"
        problems.update(problem or {})
        versions.update(version or {})
        probe.update(ext or {})
        status = doctor.main()
        return status, doctor.examine()

    return run


def test_a_machine_with_the_tested_versions_is_ready(machine):
    """Bug: a row is not ok where nothing is wrong, and people fix what works."""
    status, rows = machine()
    assert status == 0
    assert {row.status for row in rows.values()} == {doctor.OK}
    assert {'Python', 'torch', 'mmcv._ext', 'mmdet', 'mmsegmentation', 'GPU', 'swinv2_mm'} <= set(rows)


def test_mmcv_compiled_for_another_torch_is_an_error_with_a_remedy(machine, capsys):
    """Bug: a page of mangled names is all that somebody sees who has changed torch."""
    status, rows = machine(ext={'returncode': 1, 'stderr': f'Traceback\n{SYMBOL}\n'})
    row = rows['mmcv._ext']
    assert status == 1
    assert row.status == doctor.ERROR
    assert f'compiled for another torch than {VERSIONS["torch"]}' in row.found
    assert 'make setup' in row.remedy or 'pip install' in row.remedy
    assert 'not ready to train: 1 to fix' in capsys.readouterr().out


def test_mmcv_that_crashes_when_it_loads_does_not_take_the_doctor_along(machine):
    """Bug: a segmentation fault in the extension ends the report without a word."""
    status, rows = machine(ext={'returncode': -11})
    assert status == 1
    assert rows['mmcv._ext'].status == doctor.ERROR
    assert 'swinv2_mm' in rows


def test_mmcv_lite_is_told_from_mmcv(machine):
    """Bug: mmcv-lite imports as mmcv, and the first training step fails on a missing operation."""
    status, rows = machine(absent=['mmcv'], version={'mmcv-lite': '2.1.0'})
    assert status == 1
    assert 'pip uninstall mmcv-lite' in rows['mmcv._ext'].remedy


def test_operations_without_cuda_beside_a_gpu_are_an_error(machine):
    """Bug: mmcv compiled on a login node without a GPU fails in the first NMS of the training."""
    status, rows = machine(ext={'stdout': 'CUDA not available True\n'})
    assert status == 1
    assert 'without CUDA' in rows['mmcv._ext'].found


def test_without_mmseg_detection_still_works(machine):
    """Bug: somebody who only detects is told that the machine is not ready."""
    status, rows = machine(absent=['mmsegmentation'], problem={'mmseg': "ModuleNotFoundError: No module named 'mmseg'"})
    assert status == 0
    assert rows['mmsegmentation'].status == doctor.WARNING
    assert 'no segmentation without it' in rows['mmsegmentation'].remedy
    assert rows['mmdet'].status == doctor.OK


def test_without_mmdet_segmentation_still_works(machine):
    """Bug: the same for somebody who only segments."""
    status, rows = machine(absent=['mmdet', 'pycocotools'])
    assert status == 0
    assert rows['mmdet'].status == doctor.WARNING


def test_without_both_nothing_can_be_trained(machine):
    """Bug: two warnings, and "ready to train" on a machine that can train nothing."""
    status, rows = machine(absent=['mmdet'], problem={'mmseg': 'AssertionError: MMCV==2.2.0 is used but incompatible'})
    assert status == 1
    assert rows['mmdet'].status == rows['mmsegmentation'].status == doctor.ERROR


def test_frameworks_that_refuse_their_neighbours_are_reported(machine):
    """Bug: mmdet's version assertion ends the doctor, or is shown without the versions that it wants."""
    status, rows = machine(problem={'mmdet': 'AssertionError: MMCV==2.2.0 is used but incompatible.'})
    assert status == 0
    assert 'AssertionError: MMCV==2.2.0' in rows['mmdet'].found
    assert 'mmcv<2.2.0' in rows['mmdet'].remedy


def test_what_mmseg_imports_without_requiring_is_named(machine):
    """Bug: "mmsegmentation is broken" where only ftfy is missing."""
    status, rows = machine(absent=['ftfy'], problem={'mmseg': "ModuleNotFoundError: No module named 'ftfy'"})
    assert status == 0
    assert 'install ftfy and regex first' in rows['mmsegmentation'].remedy
    assert rows['ftfy'].status == doctor.WARNING


def test_missing_pkg_resources_names_the_setuptools_that_has_it(machine):
    """Bug: setuptools 82 has no pkg_resources, and configs that inherit from mmdet die in mmengine."""
    problem = {'pkg_resources': "ModuleNotFoundError: No module named 'pkg_resources'"}
    status, rows = machine(problem=problem, version={'setuptools': '82.0.0'})
    assert status == 1
    assert 'setuptools<81' in rows['setuptools'].remedy


def test_missing_system_libraries_of_opencv_name_their_packages(machine):
    """Bug: "libGL.so.1: cannot open shared object file" on every slim container."""
    problem = {'cv2': 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'}
    status, rows = machine(problem=problem)
    assert status == 1
    assert rows['opencv-python'].remedy == 'apt-get install libgl1 libglib2.0-0'


def test_another_version_is_a_warning(machine, capsys):
    """Bug: a newer torch is called an error; or one is called untested because its build is named (+cpu)."""
    status, rows = machine(version={'torch': '2.99.0+cu999', 'mmengine': VERSIONS['mmengine'] + '+cpu'})
    assert status == 0
    assert rows['torch'].status == doctor.WARNING
    assert f'2.99.0+cu999  (tested: {VERSIONS["torch"]}, ' in capsys.readouterr().out
    assert rows['mmengine'].status == doctor.OK


@pytest.mark.parametrize(
    'sets, compiled, found, remedy',
    [
        (('avx512', 'avx2'), ('avx512', 'avx2'), 'C++ for avx512, the widest', ''),
        (('avx512', 'avx2'), ('avx2',), 'C++ for avx2, avx512 was not compiled', ''),
        (('avx512', 'avx2'), (), 'those for avx512 were not compiled', 'install a C++ compiler'),
        ((), (), 'ours need AVX2 or NEON', ''),
    ],
)
def test_the_kernels_that_are_used_are_told(sets, compiled, found, remedy, monkeypatch):
    """Bug: an installation without a compiler is slow, and nothing says why."""
    monkeypatch.setattr('swinv2_mm.models.kernels.cpp.instruction_sets', lambda: sets)
    monkeypatch.setattr(
        'swinv2_mm.models.kernels.cpp.compiled_for', lambda name: object() if name in compiled else None
    )
    row = doctor.kernels()
    assert row.status == doctor.OK and found in row.found
    assert row.remedy.startswith(remedy) and bool(row.remedy) == bool(remedy)


@pytest.mark.parametrize(
    ('capability', 'on', 'told'), [((8, 0), False, True), ((8, 0), True, False), ((7, 5), False, False)]
)
def test_float32_products_without_tf32_are_told(capability, on, told, monkeypatch):
    """Bug: a GPU multiplies float32 at an eighth of its rate, and nothing says so."""
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 2)
    monkeypatch.setattr('torch.cuda.get_device_name', lambda *_: 'NVIDIA A100')
    monkeypatch.setattr('torch.cuda.get_device_capability', lambda *_: capability)
    monkeypatch.setattr('swinv2_mm.compat.multiplies_in_tf32', lambda: on)
    row = doctor.gpu()
    assert row.status == doctor.OK and row.found.startswith('2 x NVIDIA A100, CUDA')
    assert ('--tf32' in row.found) == told
    assert 'have not been measured' in row.found


def test_without_torch_every_row_is_still_there(machine, monkeypatch):
    """Bug: the doctor needs what it examines."""
    for name in ('GPU', 'swinv2_mm'):
        monkeypatch.setitem(doctor.TABLE, name, line_that(lambda *_: importlib.import_module('no_such_torch'), name))
    status, rows = machine(absent=['torch'])
    assert status == 1
    assert rows['torch'].found == 'missing'
    assert rows['swinv2_mm'].status == doctor.ERROR
    assert rows['GPU'].status == doctor.WARNING


# --- looking, on this machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('source', 'told'),
    [
        ('assert False, "MMCV==2.2.0 is used\\nbut"', 'AssertionError: MMCV==2.2.0 is used'),
        ('raise SystemExit("bye")', 'SystemExit: bye'),
        ('import no_such_thing', "ModuleNotFoundError: No module named 'no_such_thing'"),
        ('x = 1', None),
    ],
)
def test_an_import_that_fails_is_one_line(source, told, tmp_path, monkeypatch):
    """Bug: whatever a package does while it is imported ends the doctor."""
    (tmp_path / 'patient.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'patient', raising=False)
    assert doctor.import_problem('patient') == told
    sys.modules.pop('patient', None)


def test_the_extension_is_loaded_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Bug: the extension is only looked for, not loaded; or it is loaded here, and a crash ends the doctor."""
    for package in ('torch', 'mmcv'):
        (tmp_path / package).mkdir()
        (tmp_path / package / '__init__.py').touch()
    (tmp_path / 'mmcv' / '_ext.py').write_text(f'raise ImportError("{SYMBOL}")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert doctor.operations().status == doctor.ERROR
    assert 'compiled for another torch' in doctor.operations().found
    (tmp_path / 'mmcv' / '_ext.py').write_text('import os\nos.abort()')
    assert doctor.operations().status == doctor.ERROR


def test_a_check_that_raises_is_a_row(monkeypatch):
    """Bug: one check's exception hides all the others' results."""

    def check(*_):
        raise SystemExit('first\nsecond')

    monkeypatch.setitem(doctor.TABLE, 'thing', doctor.Line('1.0', check=check))
    row = doctor.check('thing', {})
    assert row == doctor.Row('SystemExit: first', doctor.ERROR, 'fix the rows above first', False)


def test_the_report_needs_no_package():
    """Bug: the doctor fails where torch, mmengine, NumPy or rich are missing or broken."""
    packages = ('torch', 'mmengine', 'numpy', 'rich', 'cv2', 'mmcv', 'mmdet', 'mmseg', 'pycocotools', 'safetensors')
    broken = ''.join(f'sys.modules[{name!r}] = None; ' for name in packages)
    code = f'import sys; {broken}from swinv2_mm import doctor; sys.exit(doctor.main())'
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, '')
    for name in doctor.TABLE:
        assert f' {name} ' in done.stdout
    assert 'not ready to train' in done.stdout


def test_the_report_shows_every_finding():
    """Bug: square brackets in an error are taken for markup, or the remedy is not shown."""
    row = doctor.Row('see [/x] there', doctor.ERROR, 'do [this]')
    assert doctor.report({'mmcv': row}).splitlines() == [
        'error    mmcv            see [/x] there  (tested: 2.1.0, 2.3.6)',
        '         -> do [this]',
        'not ready to train: 1 to fix',
    ]


def test_the_tested_versions_are_those_of_the_constraints():
    """Bug: constraints.txt moves on, and the doctor calls the versions that we install untested."""
    lines = (ROOT / 'constraints.txt').read_text()
    pins = dict(re.findall(r'^([\w.-]+)==([^\s;]+)', lines, re.M))
    assert {name: pins.get(name) for name in VERSIONS} == VERSIONS
    assert doctor.TABLE[doctor.OPERATIONS].tested == f'for torch {pins["torch"]}'
    setup_env = load_script(ROOT / 'tools' / 'setup_env.py')
    assert setup_env.SUPPORTED == doctor.PYTHON
    assert VERSIONS['mmcv'] == setup_env.pinned('mmcv')
