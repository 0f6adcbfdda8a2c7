"""What several tests share."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_script(path: Path) -> ModuleType:
    """The module of a script, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f'{path.parent.name}_{path.stem}', path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses looks for it
        spec.loader.exec_module(module)
    return module


def run_process(*command: object, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Run a program on one thread, which finds the package, these helpers and this interpreter from any folder."""
    environment = dict(os.environ, PYTHON=sys.executable, OMP_NUM_THREADS='1', PYTHONPATH=f'{ROOT}:{ROOT}/tests')
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
