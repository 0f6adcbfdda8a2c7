"""Windows per stage: their spellings, and reading them from Hugging Face's ``config.json``."""

from collections.abc import Iterator, Mapping
from typing import Any

Pair = tuple[int, int]  # rows and columns
Windows = tuple[Pair, ...]  # per stage


def pairs(value: Any, stages: int) -> Windows | None:
    """Expand windows to ``(rows, columns)`` per stage; None for a value that cannot be windows."""
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        return None
    found = [tuple(entry) if isinstance(entry, list | tuple) else (entry, entry) for entry in value]
    found = found * stages if len(found) == 1 else found
    whole = all(len(pair) == 2 and all(type(side) is int and side >= 1 for side in pair) for pair in found)
    return tuple((rows, columns) for rows, columns in found) if whole and len(found) == stages else None


def plain(windows: Windows | None) -> list | None:
    """Windows as people write them in a config: square ones as numbers, others as lists of two."""
    return None if windows is None else [rows if rows == columns else [rows, columns] for rows, columns in windows]


def windows_of_hugging_face(
    config: Mapping[str, Any], patch_size: int, stages: int
) -> tuple[Windows | None, Windows | None]:
    """The windows and pretrained windows in Hugging Face's ``config.json``, or in that of a part of its model.

    It has one window, shrunk to the maps of ``image_size``; a pretrained window of 0 means that window. Parts are
    ``backbone_config`` of UperNet and DETR, and the like; if several are SwinV2 and differ, none counts.
    """
    found = {_windows_of_swinv2(part, patch_size, stages) for part in _parts_of_swinv2(config)}
    return found.pop() if len(found) == 1 else (None, None)


def _parts_of_swinv2(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    if config.get('model_type') == 'swinv2':
        yield config
        return
    for part in config.values():
        if isinstance(part, Mapping):
            yield from _parts_of_swinv2(part)


def _windows_of_swinv2(
    config: Mapping[str, Any], patch_size: int, stages: int
) -> tuple[Windows | None, Windows | None]:
    # The defaults are transformers', which leaves some of them out when it saves a part of a config.
    size, window = config.get('image_size', 224), config.get('window_size', 7)
    size = size[0] if isinstance(size, list) and size else size  # it has square windows, by the rows
    if type(size) is not int or type(window) is not int or window < 1:
        return None, None
    sides = [max(1, size // patch_size // 2**i) for i in range(stages)]
    windows = [min(window, side) for side in sides]
    pretrained = config.get('pretrained_window_sizes') or [0] * stages
    if not isinstance(pretrained, list) or len(pretrained) < stages:
        return None, None
    known = [p or w for p, w in zip(pretrained, windows, strict=False)]
    return pairs(windows, stages), pairs(known, stages)
