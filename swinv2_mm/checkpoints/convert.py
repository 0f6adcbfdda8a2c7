"""Apply a key table strictly: every key is renamed by exactly one row or dropped by name, or nothing is converted."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from swinv2_mm.checkpoints.layouts import LAYOUTS, Layout


class ConversionError(ValueError):
    """The file cannot be converted; the message says why and what would help."""


def recognise(keys: list[str]) -> tuple[str, str]:
    """Find the layout and the prefix of a state_dict by its keys.

    Raises:
        ConversionError: No layout, or more than one, has such keys.
    """
    found = [(name, prefix) for name, layout in LAYOUTS.items() for prefix in layout.prefixes
             if any(re.fullmatch(re.escape(prefix) + layout.mark, key) for key in keys)]
    if len(found) == 1:
        return found[0]
    if any(key.endswith('relative_position_bias_table') for key in keys):
        raise ConversionError('this is Swin V1: it has relative_position_bias_table, which V2 replaced by a continuous '
                              'position bias. Its weights do not fit; use a swinv2_* checkpoint.')
    raise ConversionError(f'these are no SwinV2 weights in a known layout ({", ".join(LAYOUTS)}); the first keys are '
                          f'{", ".join(keys[:5]) or "(none)"}.')


def convert_state_dict(state: Mapping[str, Tensor], layout: str | None = None) -> dict[str, Tensor]:
    """Rename the backbone's parameters to the names of :class:`swinv2_mm.SwinTransformerV2`.

    Args:
        state: Names and tensors; prefixes such as ``encoder.`` or ``swinv2.`` are recognised.
        layout: A key of :data:`LAYOUTS`; None recognises it by its keys.

    Returns:
        Our names and tensors, without the output norms ``norm{i}``, which classification checkpoints do not have.

    Raises:
        ConversionError: Unknown layout, or keys that no row or more than one row matches; they are listed.
    """
    name, prefix = recognise(list(state))
    if layout not in (None, name):
        raise ConversionError(f'the keys are of layout {name!r}, not {layout!r}.')
    table = LAYOUTS[name]
    out: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    unknown = []
    for key, tensor in state.items():
        bare = key.removeprefix(prefix)
        matches = _matching_rows(bare, table)
        dropped = any(re.fullmatch(pattern, bare) for pattern in table.dropped)
        if len(matches) + dropped != 1:
            unknown.append(key)
            continue
        if dropped:
            continue
        row, match = matches[0]
        groups = match.groupdict()
        target = row.target.format(i=int(groups.get('i') or 0) + row.stage_offset, rest=groups.get('rest'))
        if row.part is None:
            out[target] = tensor
        else:
            parts.setdefault(target, {})[row.part[0]] = tensor
            counts[target] = row.part[1]
    incomplete = [target for target, found in parts.items() if len(found) < counts[target]]
    if unknown or incomplete:
        raise ConversionError(f'not a complete {name} checkpoint of SwinV2: unknown keys {unknown[:10]}, '
                              f'incomplete {incomplete[:10]}.')
    for target, found in parts.items():
        out[target] = torch.cat([found[index] for index in sorted(found)])
    return out


def _matching_rows(key: str, table: Layout) -> list:
    return [(row, match) for row in table.rows if (match := re.fullmatch(row.source, key))]


def windows_of(state: Mapping[str, Tensor]) -> tuple[list[int], list[int]] | None:
    """Read windows and pretrained windows per stage off Microsoft's coordinate tables; None where there are none.

    A table of ``2 * w - 1`` offsets has ``c`` as its largest entry with ``8 * (w - 1) / (p - 1) = 2 ** (3 * c) - 1``.
    """
    windows, pretrained = {}, {}
    for key, table in state.items():
        if match := re.fullmatch(r'(.*\.)?layers\.(\d+)\.blocks\.0\.attn\.relative_coords_table', key):
            stage, w = int(match[2]), (table.shape[1] + 1) // 2
            windows[stage] = w
            pretrained[stage] = round(1 + 8 * (w - 1) / (2 ** (3 * float(table.max())) - 1)) if w > 1 else 1
    if not windows:
        return None
    return [windows[i] for i in sorted(windows)], [pretrained[i] for i in sorted(pretrained)]
