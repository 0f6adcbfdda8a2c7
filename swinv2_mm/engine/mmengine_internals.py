"""Everything private of mmengine, mmdet and mmseg that we touch, each with the version that it was written for.

A release of theirs may change any of it without notice: after an upgrade, read this file first.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import Registry

# --- reading configs ---


@contextmanager
def files_being_read() -> Iterator[list[str]]:
    """Record the config files that mmengine has begun to read; after an error, the last one is where it happened.

    mmengine 0.10: ``Config._file2dict`` and, for pure-Python configs, ``Config._parse_lazy_import`` read one file each
    and call themselves for the files that it inherits.
    """
    files: list[str] = []

    def recorded(read: Callable) -> staticmethod:
        def call(filename: str, *args: Any, **kwargs: Any) -> Any:
            files.append(os.path.abspath(os.path.expanduser(filename)))
            content = read(filename, *args, **kwargs)
            files.pop()
            return content

        return staticmethod(call)

    own = {name: vars(Config)[name] for name in ('_file2dict', '_parse_lazy_import')}
    for name, method in own.items():
        setattr(Config, name, recorded(method.__func__))
    try:
        yield files
    finally:
        for name, method in own.items():
            setattr(Config, name, method)


def content_of(cfg: Config) -> dict:
    """The top level of a config; ``dict.items`` of it gives lazy objects as they are. mmengine 0.10."""
    return cfg._cfg_dict


def names_imported_by(cfg: Config) -> set[str]:
    """The top-level names that a pure-Python config only imports. mmengine 0.10."""
    return cfg._imported_names


def parse_value(text: str) -> Any:
    """The value of a ``--cfg-options key=value``, as mmengine's ``DictAction`` parses it. mmengine 0.10.

    Raises:
        AssertionError: The brackets do not match.
    """
    return DictAction._parse_iterable(text)


# --- building from registries, running ---


@contextmanager
def watched_builds(failed: Callable[[Exception, Registry, list, dict], None]) -> Iterator[None]:
    """Call a function when a registry fails to build something, once for each config on the way out.

    mmengine 0.10: everything that a config names is built by ``Registry.build(cfg, default_args)``, which is public;
    we replace it for a while.

    Args:
        failed: Takes the exception, the registry, the configs that were being built, the innermost last, and the
            default arguments. The scope is that of the build.
    """
    own, chain = Registry.build, []

    def build(self: Registry, cfg: Any, *args: Any, **kwargs: Any) -> Any:
        chain.append(cfg)
        try:
            return own(self, cfg, *args, **kwargs)
        except Exception as error:
            failed(error, self, chain, (args[0] if args else kwargs.get('default_args')) or {})
            raise
        finally:
            chain.pop()

    Registry.build = build
    try:
        yield
    finally:
        Registry.build = own


# --- checkpoints ---

# --- data sets and heads of mmdet and mmseg ---
