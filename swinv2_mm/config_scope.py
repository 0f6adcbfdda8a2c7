"""Lets mmengine find ``swinv2_mm::NAME`` in a config's ``_base_``, as it finds ``mmdet::NAME``.

mmengine knows the packages of a fixed table only, and reads a config before it imports anything that the config names.
So an installed wheel holds a copy of this file, and a ``.pth`` file that imports the copy when Python starts. The copy
waits for mmengine's config module; it imports nothing of ours, torch's or mmengine's. In a checkout
``swinv2_mm.registry`` calls :func:`install`.

Written for ``Config._get_cfg_path`` of mmengine 0.10.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Any

PREFIX = 'swinv2_mm::'
MODULE = 'mmengine.config.config'


def config_path(name: str) -> str:
    """The absolute path of one of our configs.

    Raises:
        FileNotFoundError: There is none of this name; the message suggests others.
    """
    spec: Any = importlib.util.find_spec('swinv2_mm')
    folder = Path(spec.origin).parent / '.mim' / 'configs'
    if not (folder / name).is_file():
        from difflib import get_close_matches

        names = sorted(path.name for path in folder.glob('*.py'))
        close = ', '.join(get_close_matches(name, names) or names)
        raise FileNotFoundError(f'swinv2_mm has no config {name!r}. Did you mean one of: {close}?')
    return str(folder / name)


def _name_of_successor() -> None:
    """mmengine's table has mmsegmentation for mmseg; onedl-mmsegmentation is found by the name of its module."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        version('mmsegmentation')
    except PackageNotFoundError:
        sys.modules['mmengine.config.utils'].MODULE2PACKAGE['mmseg'] = 'mmseg'


def _extend(module: Any) -> None:
    config = module.Config
    if getattr(config._get_cfg_path, 'knows_swinv2_mm', False):
        return
    theirs = config._get_cfg_path

    def _get_cfg_path(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if cfg_path.startswith('mmseg::') and importlib.util.find_spec('mmseg'):
            _name_of_successor()
        # No scope: with 'swinv2_mm' the detectors of mmdet would be looked up among our classes.
        return (
            (config_path(cfg_path[len(PREFIX) :]), None) if cfg_path.startswith(PREFIX) else theirs(cfg_path, filename)
        )

    _get_cfg_path.knows_swinv2_mm = True
    config._get_cfg_path = staticmethod(_get_cfg_path)


class _Finder(importlib.abc.MetaPathFinder):
    """Waits for mmengine's config module, then leaves."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec: Any = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _extend(module)

        spec.loader.exec_module = exec_module
        return spec


def install() -> None:
    """Make ``swinv2_mm::`` known to mmengine, now or when its config module is imported."""
    if MODULE in sys.modules:
        _extend(sys.modules[MODULE])
    elif not any(type(finder).__name__ == _Finder.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
