"""Convert weights by a key table, strictly: every key matches exactly one row, or is dropped by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from swinv2_mm.checkpoints.geometry import (
    PRETRAINED_KEY,
    Geometry,
    read_geometry,
    read_windows,
    shorten,
    told_windows,
)
from swinv2_mm.checkpoints.layouts import FOREIGN, LAYOUTS, Row
from swinv2_mm.checkpoints.windows import Windows
from swinv2_mm.errors import UserError


@dataclass
class Conversion:
    """Weights in our names, and what happened to every key of their source.

    Attributes:
        weights: Our names and tensors; none is a view of a part of another tensor.
        layout: A key of :data:`LAYOUTS`.
        prefix: The text before every key of the backbone.
        geometry: The size of the model.
        window_size: ``(rows, columns)`` per stage, if the weights themselves tell it.
        pretrained_window_sizes: Likewise.
        sources: Our name -> their keys.
        dropped: Their key -> why it was left out.
        new: Output norms that the source lacks; a model initialises them.
    """

    weights: dict[str, Tensor]
    layout: str
    prefix: str
    geometry: Geometry
    window_size: Windows | None
    pretrained_window_sizes: Windows | None
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)


def recognise(keys: Iterable[str], layout: str | None = None, prefix: str | None = None) -> tuple[str, str]:
    """Find the layout and the prefix of a state_dict by its keys.

    Args:
        keys: The keys of the state_dict.
        layout: Consider this one only.
        prefix: Likewise, such as ``'backbone.'``; the dot at its end may be left out.

    Raises:
        UserError: No layout fits, or several do; the message says what the keys look like.
    """
    keys = list(keys)
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f'layout {layout!r} is unknown; choose one of {", ".join(LAYOUTS)}.')
    wanted = None if prefix is None else prefix and prefix.rstrip('.') + '.'
    found = []
    for name in [layout] if layout else LAYOUTS:
        table = LAYOUTS[name]
        sets = [{m[1] for key in keys if (m := re.fullmatch(rf'((?:.+\.)?){mark}', key))} for mark in table.marks]
        for candidate in sorted(set.intersection(*sets)):
            unfit = table.never and any(re.fullmatch(re.escape(candidate) + table.never, key) for key in keys)
            if not unfit and wanted in (None, candidate):
                found.append((name, candidate))
    if len(found) == 1:
        return found[0]
    if found:
        several = ', '.join(f'{name} under the prefix {candidate!r}' for name, candidate in found)
        raise UserError(f'there are several models in it: {several}. Choose one with --prefix (or prefix=).')
    raise UserError(_describe(keys, layout, wanted))


def _describe(keys: list[str], layout: str | None, prefix: str | None) -> str:
    if layout is not None or prefix is not None:
        try:
            name, there = recognise(keys)
        except UserError as error:
            return str(error)
        return f'its keys are {LAYOUTS[name].owner} ({name}) under the prefix {there!r}, not what was asked for.'
    for pattern, words in FOREIGN:
        if any(re.fullmatch(pattern, key) for key in keys):
            return words
    return (
        f'no SwinV2 weights in a known layout ({", ".join(LAYOUTS)}): of its {len(keys)} keys the first are '
        f'{", ".join(keys[:5]) or "(none)"}.'
    )


def convert_state_dict(
    state: Mapping[str, Tensor], *, layout: str | None = None, prefix: str | None = None
) -> Conversion:
    """Rename a backbone's parameters to the names of :class:`swinv2_mm.SwinTransformerV2`, and check them.

    Args:
        state: Names and tensors.
        layout: A key of :data:`LAYOUTS`; None recognises it by the keys.
        prefix: The text before the keys of the backbone; None recognises it.

    Raises:
        UserError: The layout is unknown, no row matches a key, or the tensors are not those of one backbone.
    """
    name, prefix = recognise(state, layout, prefix)
    places, dropped = _match_keys(state, name, prefix)
    last = str(max((int(i) for _, i, _ in places if i), default=0))
    weights: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for (index, i, j), keys in places.items():
        row = LAYOUTS[name].rows[index]
        if len(keys) < len(row.theirs):
            there = sorted(keys.values())
            raise UserError(f'no complete SwinV2 backbone: of {", ".join(row.theirs)} there are only {shorten(there)}.')
        taken = tuple(keys[part] for part in range(len(row.theirs)))
        for ours, tensor in zip(row.ours, _apply(row, taken, state), strict=True):
            target = ours.format(i=i, j=j, last=last)
            if target in sources:  # as with layers. and layers_. in one file of timm
                raise UserError(f'{", ".join((*sources[target], *taken))} are all {target} here.')
            sources[target] = taken
            (weights if row.learned else tables)[target] = tensor
            if not row.learned:
                dropped[taken[0]] = 'read as the windows'
    geometry = read_geometry(weights)
    stages = len(geometry.depths)
    windows, pretrained = _read_windows(tables, sources, stages)
    return Conversion(
        weights,
        name,
        prefix,
        geometry,
        windows,
        pretrained,
        sources={ours: theirs for ours, theirs in sources.items() if ours in weights},
        dropped=dropped,
        new=[f'norm{i}' for i in range(stages) if f'norm{i}.weight' not in weights],
    )


_Place = tuple[int, str, str]  # a row of the table, our stage, the block


def _match_keys(state: Iterable[str], name: str, prefix: str) -> tuple[dict[_Place, dict[int, str]], dict[str, str]]:
    """Find the row of every key: the keys at each place, by their part of the row, and the dropped keys."""
    table = LAYOUTS[name]
    rows = [(row, [_pattern(key) for key in row.theirs]) for row in table.rows]
    places: dict[_Place, dict[int, str]] = {}
    dropped, unknown = {}, []
    for key in state:
        if not key.startswith(prefix):
            dropped[key] = f'another part of the model than {prefix}'
            continue
        bare = key[len(prefix) :]
        matches = [
            (index, part, match)
            for index, (row, patterns) in enumerate(rows)
            for part, pattern in enumerate(patterns)
            if (match := _match(pattern, bare, row)) is not None
        ]
        reasons = [reason for pattern, reason in table.dropped if re.fullmatch(pattern, bare)]
        if len(matches) + len(reasons) != 1:
            unknown.append(key)
        elif reasons:
            dropped[key] = reasons[0]
        else:
            index, part, (i, j) = matches[0]
            places.setdefault((index, i, j), {})[part] = key
    if unknown:
        raise UserError(
            f'{len(unknown)} keys are unknown in the layout {name}: {shorten(unknown)}. Nothing is '
            'converted, since their meaning in the model is unknown.'
        )
    return places, dropped


def _read_windows(
    tables: dict[str, Tensor], sources: Mapping[str, tuple[str, ...]], stages: int
) -> tuple[Windows | None, Windows | None]:
    """The windows and pretrained windows that the weights tell, by our own entry or by the coordinate tables."""
    own = tables.pop(PRETRAINED_KEY, None)
    if own is not None:
        key = sources[PRETRAINED_KEY][0]
        pretrained = told_windows(key, own)
        if len(pretrained) != stages:
            raise UserError(f'{key} is for {len(pretrained)} stages, not {stages}.')
        return None, pretrained
    windows, pretrained = read_windows(tables) or (None, None)
    return (windows, pretrained) if windows is not None and len(windows) == stages else (None, None)


def export_state_dict(weights: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Rename our parameters to the names of another code base.

    Returns:
        Their names and tensors, and our keys that have no place there.

    Raises:
        UserError: The weights are no complete backbone, the layout is unknown, or it lacks a part of a block.
    """
    if layout not in LAYOUTS:
        raise UserError(f'layout {layout!r} is unknown; choose one of {", ".join(LAYOUTS)}.')
    weights = {key: tensor for key, tensor in weights.items() if key != PRETRAINED_KEY}
    last = str(len(read_geometry(weights).depths) - 1)
    out: dict[str, Tensor] = {}
    used = set()
    for row in LAYOUTS[layout].rows:
        if row.save is None:
            continue
        pattern = _pattern(row.ours[0].replace('{last}', last))
        for key in weights:
            match = re.fullmatch(pattern, key)
            if match is None:
                continue
            i, j = (match.groupdict().get(name) for name in 'ij')
            ours = [name.format(i=i, j=j, last=last) for name in row.ours]
            there = row.stage[0] * int(i) + row.stage[1] if i else None
            if there is not None and there < 0:
                continue
            used.update(ours)
            for name, tensor in zip(row.theirs, row.save(tuple(weights[our] for our in ours)), strict=True):
                out[name.format(i=there, j=j)] = _own(tensor)
    lost = [key for key in weights if key not in used]
    inside = [key for key in lost if key.startswith('stages.')]
    if inside:
        raise UserError(f'the layout {layout} has no place for {shorten(inside)}: without them it is another model.')
    return out, lost


def _pattern(template: str) -> str:
    return re.escape(template).replace(r'\{i\}', r'(?P<i>\d+)').replace(r'\{j\}', r'(?P<j>\d+)')


def _match(pattern: str, key: str, row: Row) -> tuple[str, str] | None:
    """Match a key; our stage and the block as text, empty if the template has none."""
    match = re.fullmatch(pattern, key)
    if match is None:
        return None
    places = match.groupdict()
    if not places.get('i'):
        return '', places.get('j') or ''
    stage, rest = divmod(int(places['i']) - row.stage[1], row.stage[0])
    return (str(stage), places.get('j') or '') if rest == 0 and stage >= 0 else None


def _apply(row: Row, keys: tuple[str, ...], state: Mapping[str, Tensor]) -> list[Tensor]:
    if len({state[key].dtype for key in keys}) > 1:  # stacking them would convert all to one
        types = ', '.join(f'{key} {state[key].dtype}' for key in keys)
        raise UserError(f'no SwinV2 backbone: tensors of one matrix have several types: {types}.')
    try:
        return [_own(tensor) for tensor in row.load(tuple(state[key] for key in keys))]
    except (RuntimeError, ValueError, IndexError):
        shapes = ', '.join(f'{key} {tuple(state[key].shape)}' for key in keys)
        raise UserError(f'no SwinV2 backbone: the shape does not allow the conversion of {shapes}.') from None


def _own(tensor: Tensor) -> Tensor:
    """Copy a view of a larger tensor: torch.save would write all of it, and safetensors refuses it."""
    return (
        tensor
        if tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
        else tensor.contiguous().clone()
    )
