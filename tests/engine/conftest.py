"""Makes the tiny training importable and its fixtures known."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'engine'))

from tiny_fixtures import fork_server, mmengine_trained, own_process, run_tool, trained  # noqa: F401
