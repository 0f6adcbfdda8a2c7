"""All tests of this folder are for GPUs: ``make gpu`` runs them, too."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker('gpu')
