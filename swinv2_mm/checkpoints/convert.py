"""Convert weights by a key table, strictly: every key matches exactly one row, or is dropped by name."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from swinv2_mm.checkpoints.geometry import (
    PRETRAINED_KEY,
    Geometry,
    check_tensors,
    read_geometry,
    read_windows,
    told_windows,
)
from swinv2_mm.checkpoints.layouts import FOREIGN, LAYOUTS, MODELS, Layout, Row
from swinv2_mm.checkpoints.windows import Windows
from swinv2_mm.errors import UserError, listed


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
    sources: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    new: list[str]


@dataclass(frozen=True)
class Rest:
    """What a model has beside its backbone.

    Attributes:
        model: A key of :data:`~swinv2_mm.checkpoints.layouts.MODELS`.
        weights: Our names and tensors.
        sources: Our name -> their key.
    """

    model: str
    weights: dict[str, Tensor]
    sources: dict[str, str]


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
    wanted = None if prefix is None else prefix and prefix.rstrip('.') + '.'
    found = [
        (name, candidate)
        for name, table in (LAYOUTS if layout is None else {layout: _table(layout)}).items()
        for candidate in _prefixes(keys, table)
        if wanted in (None, candidate)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        several = ', '.join(f'{name} under the prefix {candidate!r}' for name, candidate in found)
        raise UserError(f'there are several models in it: {several}. Choose one with --prefix (or prefix=).')
    if layout is not None or prefix is not None:
        name, there = recognise(keys)
        raise UserError(
            f'its keys are {LAYOUTS[name].owner} ({name}) under the prefix {there!r}, not what was asked for.'
        )
    for pattern, words in FOREIGN:
        if any(re.fullmatch(pattern, key) for key in keys):
            raise UserError(words)
    raise UserError(
        f'no SwinV2 weights in a known layout ({", ".join(LAYOUTS)}): of its {len(keys)} keys the first are '
        f'{", ".join(keys[:5]) or "(none)"}.'
    )


def has_backbone(keys: Iterable[str]) -> bool:
    """Whether some of these keys are a SwinV2 backbone's, in any layout."""
    keys = list(keys)
    known = any(key.endswith('.logit_scale') for key in keys)  # every layout has them
    return known and any(_prefixes(keys, table) for table in LAYOUTS.values())


def _table(layout: str) -> Layout:
    if layout not in LAYOUTS:
        raise UserError(f'layout {layout!r} is unknown; choose one of {", ".join(LAYOUTS)}.')
    return LAYOUTS[layout]


def _prefixes(keys: list[str], table: Layout) -> list[str]:
    """What stands before all marks of a layout, but not before a key that it never has."""
    sets = [{m[1] for key in keys if (m := re.fullmatch(rf'((?:.+\.)?){mark}', key))} for mark in table.marks]
    never = re.compile(rf'((?:.+\.)?){table.never}') if table.never else None
    unfit = {m[1] for key in keys if never and (m := never.fullmatch(key))}
    return sorted(set.intersection(*sets) - unfit)


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
    last = max((row.stage.index(int(there)) for row, there, _ in places if there), default=0)
    weights: dict[str, Tensor] = {}
    tables: dict[str, Tensor] = {}
    sources: dict[str, tuple[str, ...]] = {}
    for row, there, j in places:
        i = row.stage.index(int(there)) if there else ''
        taken = tuple(prefix + key.format(i=there, j=j) for key in row.theirs)
        absent = [key for key in taken if key not in state]
        if absent:
            raise UserError(f'no complete SwinV2 backbone: a matrix lacks {listed(absent)}.')
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


def _match_keys(state: Iterable[str], name: str, prefix: str) -> tuple[list[tuple[Row, str, str]], dict[str, str]]:
    """Find the row, their stage and the block of every key, or why it is dropped."""
    table = LAYOUTS[name]
    templates = [(row, re.compile(_pattern(key))) for row in table.rows for key in row.theirs]
    places: dict[tuple[Row, str, str], None] = {}  # several keys may have one place
    dropped, unknown = {}, []
    for key in state:
        if not key.startswith(prefix):
            dropped[key] = f'another part of the model than {prefix}'
            continue
        bare = key[len(prefix) :]
        matches = [
            (row, match['i'], match['j'])
            for row, pattern in templates
            if (match := pattern.fullmatch(bare)) and (not match['i'] or int(match['i']) in row.stage)
        ]
        reasons = [reason for pattern, reason in table.dropped if re.fullmatch(pattern, bare)]
        if len(matches) + len(reasons) != 1:
            unknown.append(key)
        elif reasons:
            dropped[key] = reasons[0]
        else:
            places[matches[0]] = None
    if unknown:
        raise UserError(
            f'{len(unknown)} keys are unknown in the layout {name}: {listed(unknown, 6)}. Nothing is converted, since '
            'their meaning in the model is unknown.'
        )
    return list(places), dropped


def _read_windows(
    tables: dict[str, Tensor], sources: Mapping[str, tuple[str, ...]], stages: int
) -> tuple[Windows | None, Windows | None]:
    """The windows and pretrained windows that the weights tell, by our own entry or by the coordinate tables."""
    if PRETRAINED_KEY in tables:
        key = sources[PRETRAINED_KEY][0]
        pretrained = told_windows(key, tables[PRETRAINED_KEY])
        if len(pretrained) != stages:
            raise UserError(f'{key} is for {len(pretrained)} stages, not {stages}.')
        return None, pretrained
    told = read_windows(tables)
    return told if told is not None and len(told[0]) == stages else (None, None)


def export_state_dict(weights: Mapping[str, Tensor], layout: str) -> tuple[dict[str, Tensor], list[str]]:
    """Rename our parameters to the names of another code base.

    Returns:
        Their names and tensors, and our keys that have no place there.

    Raises:
        UserError: The weights are no complete backbone, the layout is unknown, or it lacks a part of a block.
    """
    weights = {key: tensor for key, tensor in weights.items() if key != PRETRAINED_KEY}
    last = str(len(read_geometry(weights).depths) - 1)
    out: dict[str, Tensor] = {}
    used: set[str] = set()
    for row in _table(layout).rows:
        if row.save is None:
            continue
        pattern = _pattern(row.ours[0].replace('{last}', last))
        for match in filter(None, (re.fullmatch(pattern, key) for key in weights)):
            i, j = match['i'], match['j']
            there = row.stage[int(i)] if i else 0
            if there < 0:
                continue
            ours = [name.format(i=i, j=j, last=last) for name in row.ours]
            used.update(ours)
            for name, tensor in zip(row.theirs, row.save(tuple(weights[our] for our in ours)), strict=True):
                out[name.format(i=there, j=j)] = _own(tensor)
    lost = [key for key in weights if key not in used]
    inside = [key for key in lost if key.startswith('stages.')]
    if inside:
        raise UserError(f'the layout {layout} has no place for {listed(inside, 6)}: without them it is another model.')
    return out, lost


_WHOLE_MODELS = {
    'simmim': (
        "the mask token and the decoder of SimMIM's models",
        'Take a checkpoint of SimMIM. A backbone alone is converted by --to microsoft, or loaded by its own init_cfg.',
    ),
    'classifier': (
        'the head of a classifier',
        'Take the file of a classifier, as swinv2_tiny_patch4_window8_256, or leave --classifier out.',
    ),
}


def places_of_rest(model: str, conversion: Conversion, keys: Container[str]) -> tuple[dict[str, str], list[str]]:
    """Where the rest of a model is among the keys of its source.

    Returns:
        Our names and their keys, and what is missing for a whole model, in their names where the layout has some.
    """
    before, theirs = MODELS[model].get(conversion.layout, ('backbone.', ()))
    ours = MODELS[model]['openmmlab'][1]
    if not theirs or not conversion.prefix.endswith(before):
        return {}, list(theirs or ours)
    places = {our: conversion.prefix.removesuffix(before) + name for our, name in zip(ours, theirs, strict=True)}
    return places, [key for key in places.values() if key not in keys]


def read_rest(model: str, conversion: Conversion, state: Mapping[str, Tensor]) -> Rest:
    """Read what a model has beside its backbone, completely; arguments as for :func:`places_of_rest`.

    Raises:
        UserError: A part is missing, has a shape that does not fit the backbone, or holds NaN.
    """
    places, missing = places_of_rest(model, conversion, state)
    what, remedy = _WHOLE_MODELS[model]
    if missing:
        raise UserError(f'{listed(missing)} {"is" if len(missing) == 1 else "are"} missing: {what}. {remedy}')
    weights = {our: _own(state[key]) for our, key in places.items()}
    classes = [len(tensor) for name, tensor in weights.items() if name.endswith('.bias') and tensor.ndim]
    wanted = conversion.geometry.shapes_of_rest(model, classes[0] if classes else 1)
    check_tensors(weights, wanted, f'the backbone does not fit {what}')
    return Rest(model, weights, places)


def join(backbone: Mapping[str, Tensor], rest: Rest, layout: str) -> dict[str, Tensor]:
    """A whole model in the names of a layout, from a backbone in its names and the rest.

    Raises:
        UserError: The code base has no such model.
    """
    if layout not in MODELS[rest.model]:
        raise UserError(f'the layout {layout} has no place for {_WHOLE_MODELS[rest.model][0]}; leave one of both out.')
    before, theirs = MODELS[rest.model][layout]
    ours = MODELS[rest.model]['openmmlab'][1]
    joined = {before + key: tensor for key, tensor in backbone.items()}
    return joined | {key: rest.weights[our] for our, key in zip(ours, theirs, strict=True)}


def _pattern(template: str) -> str:
    """A regular expression with the groups i and j, empty where the template has none."""
    pattern = re.escape(template)
    for name in 'ij':
        place = re.escape(f'{{{name}}}')
        pattern = pattern.replace(place, rf'(?P<{name}>\d{{1,3}})') if place in pattern else rf'{pattern}(?P<{name}>)'
    return pattern


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
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    return tensor if whole else tensor.contiguous().clone()
