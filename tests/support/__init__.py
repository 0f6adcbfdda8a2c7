"""What several tests share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load_script(path: Path) -> ModuleType:
    """The module of a script, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f'{path.parent.name}_{path.stem}', path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def run_process(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program on one thread, which finds the package, these helpers and this interpreter from any folder."""
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{ROOT}/tests')
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
