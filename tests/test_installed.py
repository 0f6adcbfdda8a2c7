"""The installed package, from its wheel: what it holds, and configs on top of it under the frameworks' own tools."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import ROOT
from support.tiny_data import write_data

MASKRCNN = "_base_ = 'swinv2_mm::maskrcnn_swinv2_t_shapes.py'\ntrain_cfg = dict(max_epochs=10, val_interval=10)\n"
UPERNET = """_base_ = 'swinv2_mm::upernet_swinv2_t_shapes.py'
train_cfg = dict(max_epochs=10, val_interval=10)
model = dict(data_preprocessor=dict(size=(64, 64)))
"""


def is_installed():
    """Whether the tests run against a wheel, as those of tests/environments.py do, and not a checkout."""
    files = metadata.distribution('swinv2_mm').files or []
    return any(str(file) == 'swinv2_mm.pth' for file in files)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    # In a copy: a build leaves its objects beside the sources.
    source = folder / 'source'
    listed = subprocess.check_output(['git', 'ls-files', '-z'], cwd=ROOT, text=True).rstrip('\0').split('\0')
    for name in listed:
        path = ROOT / name
        if path.is_symlink() or path.is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink():
                (source / name).symlink_to(os.readlink(path))
            else:
                (source / name).write_bytes(path.read_bytes())
    # The C++ has its own tests; without a compiler its build is a warning.
    command = [sys.executable, 'setup.py', '--quiet', 'bdist_wheel', '--dist-dir', folder]
    subprocess.run(command, cwd=source, check=True, env={**os.environ, 'CC': 'false', 'CXX': 'false'})
    return next(folder.glob('*.whl'))


@pytest.fixture(scope='module')
def python(request, tmp_path_factory):
    """An interpreter of an environment where the wheel is installed."""
    if is_installed():
        return sys.executable
    folder = tmp_path_factory.mktemp('environment')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    packages = next(folder.glob('lib/*/site-packages'))
    with zipfile.ZipFile(request.getfixturevalue('wheel')) as archive:
        archive.extractall(packages)
    # This line adds a folder of packages, but not what their own .pth files add, such as the checkout.
    (packages / 'zz_packages_of_the_tests.pth').write_text(sysconfig.get_path('purelib'))
    return str(folder / 'bin' / 'python')


def run(python, folder, *command):
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return subprocess.run(
        [python, *command], cwd=folder, env={**environment, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True
    )


@pytest.mark.skipif(is_installed(), reason='looks into a wheel of the checkout')
def test_a_wheel_holds_configs_tools_and_types(wheel):
    """Each config, the index of the zoo and the types are in it. Bug: they work in a checkout only."""
    held = set(zipfile.ZipFile(wheel).namelist())
    mim = 'swinv2_mm/.mim'
    configs = {f'{mim}/{path.relative_to(ROOT)}' for path in (ROOT / 'configs').rglob('*') if path.suffix != '.pyc'}
    files = {name for name in configs if (ROOT / name.removeprefix(f'{mim}/')).is_file()}
    assert files <= held and len(files) > 60
    assert {f'{mim}/model-index.yml', f'{mim}/tools/train.py', 'swinv2_mm/py.typed', 'swinv2_mm.pth'} <= held
    assert f'{mim}/tools/setup_env.py' not in held


def test_python_starts_as_fast_with_it(python, tmp_path):
    """The .pth file imports nothing but its own few lines. Bug: every start of Python waits for torch."""
    found = run(python, tmp_path, '-c', 'import sys; print(*sys.modules)')
    names = found.stdout.split()
    assert '_swinv2_mm_config_scope' in names, found.stderr
    assert not {'swinv2_mm', 'torch', 'mmengine', 'numpy'} & set(names)


def test_a_misspelt_config_is_told_with_its_neighbours(python, tmp_path):
    """Bug: the message is about mmengine's table of packages."""
    (tmp_path / 'mine.py').write_text("_base_ = 'swinv2_mm::maskrcnn_swin2_t.py'\n")
    found = run(python, tmp_path, '-c', "from mmengine.config import Config; Config.fromfile('mine.py')")
    assert "swinv2_mm has no config 'maskrcnn_swin2_t.py'" in found.stderr
    assert 'maskrcnn_swinv2_t.py' in found.stderr.splitlines()[-1]


def test_the_packages_of_mmengine_are_found_as_before(python, tmp_path):
    """Bug: the names of other packages go through our lookup, too."""
    (tmp_path / 'mine.py').write_text("_base_ = 'swin::maskrcnn/x.py'\n")
    found = run(python, tmp_path, '-c', "from mmengine.config import Config; Config.fromfile('mine.py')")
    assert 'mmengine does not support to load swin config' in found.stderr


@pytest.mark.parametrize(
    ('framework', 'config', 'score'),
    [('mmdet', MASKRCNN, 'coco/segm_mAP'), ('mmseg', UPERNET, 'mIoU')],
    ids=['mmdet', 'mmseg'],
)
def test_the_frameworks_own_tools_train_a_config_on_ours(framework, config, score, python, tmp_path):
    """Two lines outside of the checkout train, save and test. Bug: that needs our tools, or a checkout."""
    if find_spec(framework) is None:
        pytest.skip(f'{framework} is not installed')
    write_data(tmp_path)
    (tmp_path / 'mine.py').write_text(config)
    tools = Path(find_spec(framework).origin).parent / '.mim' / 'tools'
    trained = run(python, tmp_path, tools / 'train.py', 'mine.py')
    assert trained.returncode == 0, trained.stderr[-3000:]
    tested = run(python, tmp_path, tools / 'test.py', 'mine.py', 'work_dirs/mine/epoch_10.pth')
    assert tested.returncode == 0, tested.stderr[-3000:]
    logs = sorted((tmp_path / 'work_dirs' / 'mine').glob('*/vis_data/scalars.json')) or sorted(
        (tmp_path / 'work_dirs' / 'mine').glob('*/*.json')
    )
    scores = [json.loads(line) for path in logs for line in path.read_text().splitlines() if score in line]
    assert len({row[score] for row in scores}) == 1  # the training's last validation, and the test
