"""Windows per stage: their spellings, and reading them from the config of a training."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

Pair = tuple[int, int]  # rows and columns
Windows = tuple[Pair, ...]  # per stage
Both = tuple[Windows | None, Windows | None]  # windows and pretrained windows


def pairs(value: Any, stages: int, least: int = 1) -> Windows | None:
    """Expand windows to ``(rows, columns)`` per stage; None for a value that cannot be windows."""
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        return None
    found: list[tuple[Any, ...]] = [
        (entry, entry) if isinstance(entry, int) else tuple(entry) if isinstance(entry, list | tuple) else ()
        for entry in value
    ]
    found = found * stages if len(found) == 1 else found
    whole = all(len(pair) == 2 and all(type(side) is int and side >= least for side in pair) for pair in found)
    return tuple((rows, columns) for rows, columns in found) if whole and len(found) == stages else None


def plain(windows: Windows | None) -> list | None:
    """Windows as people write them in a config: square ones as numbers, others as lists of two."""
    return None if windows is None else [rows if rows == columns else [rows, columns] for rows, columns in windows]


def windows_of_hugging_face(config: Mapping[str, Any], patch_size: int, stages: int) -> Both:
    """The windows and pretrained windows in Hugging Face's ``config.json``.

    It has one window, shrunk to the maps of ``image_size``; a pretrained window of 0 means that window.
    """
    size, window = config.get('image_size'), config.get('window_size')
    if config.get('model_type') != 'swinv2' or type(size) is not int or type(window) is not int or window < 1:
        return None, None
    sides = [max(1, size // patch_size // 2**i) for i in range(stages)]
    windows = [min(window, side) for side in sides]
    pretrained = config.get('pretrained_window_sizes') or [0] * stages
    if not isinstance(pretrained, list) or len(pretrained) != stages:
        return None, None
    return pairs(windows, stages), pairs([p or w for p, w in zip(pretrained, windows, strict=True)], stages)


def windows_of_training(text: Any, prefix: str, stages: int) -> Both:
    """The windows and pretrained windows of a backbone in an mmengine config, which is parsed and never run.

    Args:
        text: As mmengine saves it in a checkpoint's meta: assignments of plain values.
        prefix: The text before the backbone's keys in the checkpoint, such as ``'backbone.'``, is its place in
            ``model``.
        stages: Number of stages of the backbone.
    """
    model = _assigned(text, 'model')
    backbones = [node for node in _dicts(model) if _is_backbone(node)]
    node = model
    for name in prefix.rstrip('.').split('.'):
        node = node.get(name, {}) if isinstance(node, dict) else {}
    if _is_backbone(node):
        backbones = [node]
    found = {_windows_of_arguments(node, stages) for node in backbones}
    return found.pop() if len(found) == 1 else (None, None)


def _windows_of_arguments(arguments: dict, stages: int) -> Both:
    windows = pairs(arguments.get('window_size', 8), stages)
    pretrained = arguments.get('pretrained_window_sizes')
    if pretrained is None and any('Pretrained' in str(node.get('type')) for node in _dicts(arguments.get('init_cfg'))):
        return None, None  # the training read it from its first checkpoint
    given = pairs(0 if pretrained is None else pretrained, stages, least=0)
    if windows is None or given is None:
        return None, None
    return windows, tuple((p or w, q or v) for (p, q), (w, v) in zip(given, windows, strict=True))


def _is_backbone(node: Any) -> bool:
    kind = node.get('type') if isinstance(node, dict) else None
    return isinstance(kind, str) and kind.startswith('swinv2_mm.') and kind.endswith('.SwinTransformerV2')


def _dicts(node: Any) -> Iterator[dict]:
    """Every dict in nested dicts and lists."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    for item in node if isinstance(node, list | tuple) else ():
        yield from _dicts(item)


def _assigned(text: Any, name: str) -> Any:
    """The value of a variable in a config's text; None if it has none, ``...`` if it is no plain value."""
    try:
        tree = ast.parse(text) if isinstance(text, str) else ast.Module([], [])
    except (SyntaxError, ValueError):  # the latter for a null character
        return None
    values = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    return _value(values[-1]) if values else None


def _value(node: ast.AST) -> Any:
    """Evaluate ``dict(…)``, brackets and literals; ``...`` for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {
            _value(key): _value(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return ...
