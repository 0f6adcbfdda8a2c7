"""Who may import whom: the map in docs/architecture.md, kept true."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'swinv2_mm'
STDLIB = set(sys.stdlib_module_names)
PLAIN = {'torch'}
ALLOWED = {
    'models/arithmetic': PLAIN,
    'models/recording': PLAIN,
    'models/bounded_cache': set(),
    'models/window': PLAIN | {'numpy', 'swinv2_mm.models.bounded_cache', 'swinv2_mm.models.recording'},
    'models/cpb': PLAIN | {'swinv2_mm.models.recording'},
    'models/variants': PLAIN,
    'models/arguments': PLAIN,
    'models/products': PLAIN | {'swinv2_mm.models.arithmetic'},
    'models/tokenwise': PLAIN
    | {f'swinv2_mm.models.{m}' for m in ('arithmetic', 'native_gelu', 'products', 'recording')},
    'models/layers': PLAIN
    | {f'swinv2_mm.models.{m}' for m in ('native_norm', 'products', 'recording', 'tokenwise', 'window')},
    'models/cosine_attention': PLAIN
    | {f'swinv2_mm.models.{m}' for m in ('arithmetic', 'cpb', 'products', 'window')},
    'models/native': PLAIN | {'swinv2_mm.models.recording'},
    'models/native_attention': PLAIN | {'swinv2_mm.models.native', 'swinv2_mm.models.window'},
    'models/native_gelu': PLAIN | {'swinv2_mm.models.native'},
    'models/native_norm': PLAIN | {'swinv2_mm.models.native'},
    'models/map_attention': PLAIN
    | {f'swinv2_mm.models.{m}' for m in ('cosine_attention', 'native_attention', 'window')},
    'models/triton_kernels': {'triton'},
    'models/triton_attention': PLAIN,
    'models/attention': PLAIN
    | {f'swinv2_mm.models.{m}' for m in (
        'cpb', 'window', 'map_attention', 'native_attention', 'cosine_attention', 'recording', 'tokenwise',
        'triton_attention')},
    'models/swin_v2': PLAIN
    | {f'swinv2_mm.models.{m}' for m in (
        'arguments', 'arithmetic', 'window', 'attention', 'layers', 'recording', 'variants')}
    | {'swinv2_mm.registry', 'mmengine.model'},
    'models/__init__': {'swinv2_mm.models.swin_v2'},
    'registry': {'mmengine', 'torch.serialization', 'swinv2_mm.safe_globals'},
    'safe_globals': {'mmengine.logging', 'numpy'},
    'checkpoints/': PLAIN | {'safetensors', 'swinv2_mm.checkpoints', 'swinv2_mm.models.variants', 'swinv2_mm.errors'},
    'engine/': PLAIN | {'mmengine', 'numpy'}
    | {f'swinv2_mm.{m}' for m in (
        'engine', 'registry', 'checkpoints', 'errors', 'models.arithmetic', 'models.swin_v2', 'safe_globals')},
    'datasets/': PLAIN | {'mmengine', 'numpy', 'cv2', 'pycocotools', 'rich', 'swinv2_mm.datasets'},
    '__init__': set(),
    'doctor': {'rich'},
    'errors': set(),
}


def module_level_imports(path):
    """Names imported when the module is, as dotted paths."""
    for node in ast.parse(path.read_text()).body:
        for inner in ast.walk(node) if not isinstance(node, ast.FunctionDef | ast.ClassDef) else ():
            if isinstance(inner, ast.Import):
                yield from (alias.name for alias in inner.names)
            elif isinstance(inner, ast.ImportFrom):
                yield inner.module


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_map(path):
    """Prevents: model code that knows files or launchers, and mmdet or mmseg becoming necessary for everybody."""
    name = path.relative_to(PACKAGE).with_suffix('').as_posix()
    allowed = ALLOWED.get(name) if name in ALLOWED else ALLOWED[name.split('/')[0] + '/']
    foreign = [m for m in module_level_imports(path) if m.split('.')[0] not in STDLIB
               and not any(m == a or m.startswith(a + '.') for a in allowed)]
    assert foreign == []


def test_importing_the_package_does_no_work():
    """Prevents: a doctor that cannot start where torch is broken, and side effects of an import."""
    code = "import sys, swinv2_mm; assert not {'torch', 'mmengine', 'mmdet', 'mmseg'} & set(sys.modules)"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
