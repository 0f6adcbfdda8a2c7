"""Who may import whom: the map in docs/architecture.md, kept true."""

import ast
import subprocess
import sys

import pytest
from support import ROOT

PACKAGE = ROOT / 'swinv2_mm'
FRAMEWORKS = {'mmcv', 'mmdet', 'mmseg', 'mmpretrain'}
OWN = 'swinv2_mm'
# For each room, in an order in which every import points to an earlier one: packages of others, rooms of ours. The
# longest name that fits a file is its room.
ROOMS = {
    'errors': (set(), set()),
    'sizes': (set(), set()),
    'config_scope': (set(), set()),
    'compat': ({'torch'}, set()),
    'checkpoints': ({'torch', 'safetensors', 'numpy'}, {'compat', 'errors', 'sizes'}),
    'registry': ({'torch', 'mmengine'}, {'checkpoints', 'compat', 'config_scope'}),
    'models/cache': ({'torch'}, {'compat'}),
    'models/arguments': ({'torch'}, set()),
    'models/window': ({'torch', 'numpy'}, {'models/cache'}),
    'models/position_bias': ({'torch'}, {'models/cache'}),
    'models/kernels': ({'torch', 'triton'}, {'compat', 'models/cache', 'models/window', 'models/position_bias'}),
    'models/layers': ({'torch'}, {'models/kernels', 'models/window'}),
    'models/attention': ({'torch'}, {'models/cache', 'models/kernels', 'models/position_bias', 'models/window'}),
    'models/pretrained_windows': ({'torch', 'mmengine'}, {'models/arguments', 'models/kernels'}),
    'models/conventions': ({'mmengine'}, {'models/arguments', 'models/pretrained_windows', 'models/window'}),
    'models/swin_v2': (
        {'torch'},
        {
            'compat',
            'models/arguments',
            'models/attention',
            'models/conventions',
            'models/kernels',
            'models/layers',
            'models/pretrained_windows',
            'models/window',
            'registry',
            'sizes',
        },
    ),
    'models/simmim': (
        {'torch', 'mmengine'},
        {'models/arguments', 'models/pretrained_windows', 'models/swin_v2', 'registry'},
    ),
    'models': (set(), {'models/simmim', 'models/swin_v2'}),
    'datasets/folders': (set(), {'errors'}),
    'datasets/unlabelled': ({'torch', 'mmengine', 'numpy', 'cv2'}, {'datasets/folders', 'errors', 'registry'}),
    'engine/mmengine_internals': ({'torch', 'mmengine'}, set()),
    'engine/config': ({'torch', 'mmengine'}, {'engine/mmengine_internals', 'errors'}),
    'engine/saving': (
        {'torch', 'mmengine', 'numpy'},
        {'checkpoints', 'engine/config', 'engine/mmengine_internals', 'errors', 'registry'},
    ),
    'engine/display': (
        {'torch', 'mmengine', 'numpy'},
        {'checkpoints', 'engine/config', 'engine/mmengine_internals', 'errors', 'models/simmim', 'registry'},
    ),
    'engine/census': (
        {'mmengine', 'numpy', 'PIL'},
        {'checkpoints', 'engine/config', 'engine/display', 'errors'},
    ),
    'engine/recipe': (
        {'torch', 'mmengine', 'numpy'},
        {
            'checkpoints',
            'compat',
            'engine/config',
            'engine/mmengine_internals',
            'engine/saving',
            'errors',
            'models/kernels',
            'models/simmim',
            'models/swin_v2',
            'registry',
        },
    ),
    'engine/checks': (
        {'torch', 'mmengine', 'numpy'},
        {
            'checkpoints',
            'engine/census',
            'engine/config',
            'engine/mmengine_internals',
            'engine/recipe',
            'engine/saving',
            'errors',
            'models/simmim',
            'models/swin_v2',
            'registry',
        },
    ),
    'engine/sharding': (
        {'torch', 'mmengine'},
        {'compat', 'engine/mmengine_internals', 'errors', 'models/swin_v2', 'registry'},
    ),
    'engine/diagnosis': (
        {'torch', 'mmengine', 'numpy'},
        {'compat', 'engine/config', 'engine/mmengine_internals', 'errors', 'registry'},
    ),
    'engine/costs': (
        {'torch', 'mmengine'},
        {'checkpoints', 'engine/checks', 'engine/config', 'errors', 'models/swin_v2', 'sizes'},
    ),
    'engine/costs/plan': (
        {'torch', 'mmengine', 'numpy', 'rich'},
        {
            'compat',
            'engine/checks',
            'engine/config',
            'engine/costs',
            'engine/recipe',
            'errors',
            'models/attention',
            'models/cache',
            'models/kernels',
            'models/position_bias',
            'models/swin_v2',
            'models/window',
            'sizes',
        },
    ),
    'engine/runs': (
        {'mmengine', 'torch'},
        {
            'compat',
            'engine/census',
            'engine/checks',
            'engine/config',
            'engine/diagnosis',
            'engine/display',
            'engine/mmengine_internals',
            'engine/recipe',
            'engine/saving',
            'errors',
        },
    ),
    'engine': (
        set(),
        {'engine/diagnosis', 'engine/display', 'engine/recipe', 'engine/saving', 'engine/sharding', 'errors'},
    ),
    'inference': (
        {'mmengine', 'torch', 'numpy'},
        {
            'checkpoints',
            'datasets/folders',
            'engine/config',
            'engine/diagnosis',
            'engine/display',
            'engine/mmengine_internals',
            'engine/recipe',
            'engine/saving',
            'errors',
        },
    ),
    'inference/export': (
        {'mmengine', 'numpy', 'onnxruntime', 'PIL', 'torch'},
        {
            'checkpoints',
            'compat',
            'engine/checks',
            'engine/config',
            'engine/recipe',
            'engine/saving',
            'errors',
            'models/kernels',
            'models/swin_v2',
            'models/window',
        },
    ),
    'datasets': ({'torch', 'mmengine', 'numpy', 'cv2', 'pycocotools', 'rich'}, set()),
    'doctor': ({'rich'}, {'compat', 'models/kernels'}),
    '__init__': (set(), set()),
}
FILES = sorted(path for path in PACKAGE.rglob('*.py') if '.mim' not in path.parts)  # a link to configs and tools


def name_of(path):
    return path.relative_to(PACKAGE).with_suffix('').as_posix().removesuffix('/__init__')


def room_of(name):
    """The longest room that a module, as ``models/kernels/matmul``, lies in."""
    parts = name.split('/')
    return next(room for end in range(len(parts), 0, -1) if (room := '/'.join(parts[:end])) in ROOMS)


def imports(path, everywhere):
    """Dotted names that a module imports: when it is imported itself, or in its functions, too."""
    tree = ast.parse(path.read_text())
    for top in tree.body:
        if everywhere or not isinstance(top, ast.FunctionDef | ast.ClassDef):
            for node in ast.walk(top):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    submodules = [f'{node.module}.{alias.name}' for alias in node.names]
                    yield from (name if is_module(name) else node.module for name in submodules)


def is_module(dotted):
    path = ROOT.joinpath(*dotted.split('.'))
    return path.with_suffix('.py').exists() or path.is_dir()


def test_the_map_points_one_way():
    """Prevents: a map that allows a circle."""
    place = {room: index for index, room in enumerate(ROOMS)}
    assert [(room, other) for room in ROOMS for other in ROOMS[room][1] if place[other] >= place[room]] == []


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_imports_follow_the_map(path):
    """Also those inside of functions. Prevents: model code that knows files or launchers, and mmdet or mmseg becoming
    necessary for everybody."""
    room = room_of(name_of(path))
    packages, rooms = ROOMS[room]
    foreign = [
        name
        for name in imports(path, everywhere=False)
        if name.split('.')[0] not in {OWN, *sys.stdlib_module_names, *packages}
    ]
    ours = [
        room_of('/'.join(name.split('.')[1:]) or '__init__')
        for name in imports(path, everywhere=True)
        if name.split('.')[0] == OWN
    ]
    assert foreign == []
    assert {other for other in ours if other not in {room, *rooms, '__init__'}} == set()


def test_no_two_modules_import_each_other():
    """Through any number of others. Prevents: names that are there or not by what was imported first."""
    known = {
        name_of(path): {
            '/'.join(name.split('.')[1:]) for name in imports(path, everywhere=True) if name.startswith(f'{OWN}.')
        }
        for path in FILES
    }
    left = {name: {other for other in others if other in known} - {name} for name, others in known.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


@pytest.mark.parametrize(
    ('module', 'absent'),
    [
        ('swinv2_mm', {'torch', 'mmengine', *FRAMEWORKS}),
        ('swinv2_mm.sizes', {'torch', 'mmengine', *FRAMEWORKS}),
        ('swinv2_mm.models', FRAMEWORKS),
        ('swinv2_mm.checkpoints.load', {'mmengine', 'swinv2_mm.models', 'swinv2_mm.engine', *FRAMEWORKS}),
        ('swinv2_mm.engine', FRAMEWORKS),
    ],
)
def test_importing_does_no_more_than_it_says(module, absent):
    """Prevents: a doctor that cannot start where torch is broken, a converter that needs the model, and what only one
    framework has becoming necessary for everybody."""
    code = f'import sys, {module}; print(*({absent!r} & set(sys.modules)))'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, '', '')


def test_folders_are_small():
    """At most twelve entries. Prevents: a room in which nothing is found."""
    sizes = {
        name_of(folder / '__init__.py'): len(
            [
                entry
                for entry in folder.iterdir()
                if entry.suffix in ('.py', '.cpp', '.h')
                or (entry.is_dir() and any(entry.glob('*.*')) and entry.name not in ('__pycache__', '.mim'))  # a link
            ]
        )
        for folder in {path.parent for path in FILES}
    }
    assert {name: size for name, size in sizes.items() if size > 12} == {}


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 350, 60
# Longer files and functions, each with its reason.
LONGER = {
    'swinv2_mm/models/kernels/gpu/triton_kernels.py:backward_table_kernel': 'a kernel',
    'swinv2_mm/models/swin_v2.py:__init__': 'the backbone: 21 arguments, each with its check, one per line',
}


def test_files_and_functions_are_short():
    """Prevents: a file of several ideas, a function that nobody reads to its end, and exceptions that outlive their
    reason."""
    long = set()
    others = [path for folder in ('tools', 'tests', 'benchmarks') for path in (ROOT / folder).rglob('*.py')]
    for path in [*FILES, *others]:
        name, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if len(text.splitlines()) > MOST_LINES_OF_A_FILE:
            long.add(name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MOST_LINES_OF_A_FUNCTION:
                long.add(f'{name}:{node.name}')
    assert long == LONGER.keys()


def test_the_page_names_every_file():
    """Prevents: docs/architecture.md, where people look first, without a file that came later."""
    page = (ROOT / 'docs' / 'architecture.md').read_text()
    files = [*FILES, *(ROOT / 'tools').rglob('*.py'), *(ROOT / 'benchmarks').glob('*.py')]
    assert [str(path) for path in files if path.name != '__init__.py' and path.name not in page] == []
