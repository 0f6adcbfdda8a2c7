"""Walk through the parts of a config; each comes with its dotted key."""

from collections.abc import Iterator
from typing import Any

# mmengine's initialization, as the root and other registries call it, and ours.
_PRETRAINED = ('Pretrained', 'mmengine.Pretrained', 'swinv2_mm.Pretrained')


def each(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The items of a list, or the one part that stands in its place."""
    if isinstance(value, list | tuple):
        yield from ((f'{key}.{index}', item) for index, item in enumerate(value))
    elif value:
        yield key, value


def nested(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """A part of a config and everything inside of it."""
    yield key, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in items:
        yield from nested(value, f'{key}.{name}')


def datasets_of(node: Any, key: str) -> Iterator[tuple[str, dict]]:
    """The data sets inside a data loader, ``RepeatDataset``, ``ConcatDataset`` and the like."""
    for place, part in each(node, key):
        if isinstance(part, dict):
            inner = [name for name in ('dataset', 'datasets') if name in part]
            for name in inner:
                yield from datasets_of(part[name], f'{place}.{name}')
            if not inner and 'type' in part:
                yield place, part


def initializers(model: Any) -> Iterator[tuple[str, Any, dict]]:
    """Every ``init_cfg`` of a model: its key, itself, and the config of its module."""
    for key, module in nested(model, 'model'):
        if isinstance(module, dict):
            for place, init_cfg in each(module.get('init_cfg'), f'{key}.init_cfg'):
                yield place, init_cfg, module


def pretrained_parts(model: Any) -> Iterator[tuple[str, dict, dict]]:
    """Every ``init_cfg`` of a model that names a checkpoint, as :func:`initializers`."""
    for key, init_cfg, module in initializers(model):
        if isinstance(init_cfg, dict) and init_cfg.get('type') in _PRETRAINED:
            yield key, init_cfg, module


def is_local(path: str) -> bool:
    """Whether a path is on this machine: no URL, no name in a model zoo, no storage service."""
    return '://' not in path and not path.startswith(('s3:', 'petrel:'))
