"""Load any checkpoint: find the file, read and convert it, and find out its windows."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2_mm import __version__
from swinv2_mm.checkpoints.catalog import Release, find
from swinv2_mm.checkpoints.convert import Conversion, Rest, convert_state_dict, has_backbone, places_of_rest, read_rest
from swinv2_mm.checkpoints.files import files_of, read_file, read_weights, write_file
from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY
from swinv2_mm.checkpoints.sources import Source, cache_dir, locate
from swinv2_mm.checkpoints.unpickling import Array
from swinv2_mm.checkpoints.windows import Pair, Windows, pairs, plain, windows_of_hugging_face
from swinv2_mm.errors import UserError, listed

# Where code bases keep the weights of a model, and their running averages.
_CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'module', 'net')
_AVERAGED = ('model_ema', 'state_dict_ema', 'ema_state_dict', 'ema')

Place = tuple[str, ...]  # keys, one inside the other


@dataclass(frozen=True)
class Loaded:
    """A converted checkpoint.

    Attributes:
        source: Where it comes from.
        conversion: Its weights in our names, and what happened to every key.
        window_size: ``(rows, columns)`` per stage; None if unknown.
        pretrained_window_sizes: Likewise.
        told_by: Where the pretrained windows were found.
        original: The tensors as they are in the file.
        container: The key of these tensors in the file.
        digest: SHA-256 of the file, or of an index and its shards.
    """

    source: Source
    conversion: Conversion
    window_size: Windows | None
    pretrained_window_sizes: Windows | None
    told_by: str
    original: dict[str, Tensor]
    container: str
    digest: str

    @property
    def windows(self) -> Windows:
        """The windows of the training, or else the pretrained windows; a UserError if both are unknown."""
        windows = self.window_size or self.pretrained_window_sizes
        if windows is None:
            raise UserError(f'{self.source.name} does not tell its windows; give pretrained_window_sizes.')
        return windows

    def state(self) -> dict[str, Tensor]:
        """A state_dict of the backbone, with its pretrained windows if they are known."""
        return self.conversion.weights | as_state(self.pretrained_window_sizes)

    def is_whole(self, model: str) -> bool:
        """Whether it is a model of :data:`~swinv2_mm.checkpoints.layouts.MODELS`, with nothing missing."""
        return not places_of_rest(model, self.conversion, self.original)[1]

    def rest(self, model: str) -> Rest:
        """What that model has beside the backbone; a UserError if a part is missing or damaged."""
        try:
            return read_rest(model, self.conversion, self.original)
        except UserError as error:
            raise UserError(f'{self.source.name}: {error}') from None

    def meta(self) -> dict[str, Any]:
        """The entry ``meta`` of a converted file, in plain values."""
        geometry = self.conversion.geometry
        size = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(geometry).items()}
        return dict(
            arch=geometry.arch,
            **size,
            window_size=plain(self.window_size),
            pretrained_window_sizes=plain(self.pretrained_window_sizes),
            source=self.source.name,
            source_layout=self.conversion.layout,
            source_sha256=self.digest,
            swinv2_mm_version=__version__,
        )


def open_checkpoint(
    name: str | Source,
    *,
    layout: str | None = None,
    prefix: str | None = None,
    ema: bool = False,
    checkpoint_key: str | None = None,
    pretrained_window_sizes: Sequence[int | Pair] | None = None,
) -> Loaded:
    """Fetch, read, convert and check a checkpoint of any known layout.

    Args:
        name: As for :func:`~swinv2_mm.checkpoints.sources.locate`, or its result.
        layout, prefix: As for :func:`~swinv2_mm.checkpoints.convert.convert_state_dict`.
        ema, checkpoint_key: As for :func:`weights_in`.
        pretrained_window_sizes: One per stage, for files that do not tell.

    Raises:
        UserError: The file cannot be fetched, read or converted, or contradicts ``pretrained_window_sizes``.
    """
    source = name if isinstance(name, Source) else locate(name)
    content = read_weights(source.path)
    try:
        original, container = weights_in(content, ema, checkpoint_key)
        conversion = convert_state_dict(original, layout=layout, prefix=prefix)
        windows, pretrained, told_by = _windows(source, content, conversion, pretrained_window_sizes)
    except UserError as error:
        raise UserError(f'{source.name}: {error}') from None
    return Loaded(source, conversion, windows, pretrained, told_by, original, container, source.digest())


def weights_in(
    content: Mapping[str, Any], ema: bool = False, checkpoint_key: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Find the weights in the content of a checkpoint.

    Args:
        content: As :func:`~swinv2_mm.checkpoints.files.read_weights` returns it.
        ema: Take the running average of the weights. mmengine's EMAHook saves it as ``state_dict``, and the trained
            weights as ``ema_state_dict``.
        checkpoint_key: Where they are, as ``'teacher'``; with dots for keys inside of others.

    Returns:
        Names and tensors, and their key in the content, empty for none.

    Raises:
        UserError: There are no weights, several models, or no average although ``ema`` asks for it.
    """
    node, place = content, ()
    if checkpoint_key is not None:
        node, place = _at(content, checkpoint_key), (checkpoint_key,)
        if not isinstance(node, Mapping):
            raise UserError(_nothing_at(content, checkpoint_key))
    models = dict(_models_in(node, place))
    averaged = [path for path in models if set(path) & set(_AVERAGED)]
    if {(*place, 'state_dict'), (*place, 'ema_state_dict')} <= models.keys():
        averaged = [(*place, 'state_dict' if ema else 'ema_state_dict')]
    found = averaged if ema else [path for path in models if path not in averaged] or averaged
    if len(found) > 1:
        raise UserError(
            f'there are several models in it: {_spelled(found)}. Choose one with --checkpoint-key (or '
            f'checkpoint_key=), as {_spelled([max(found)])}.'
        )
    if ema and not found:
        there = f'the models in it are {_spelled(models)}' if models else f'its keys are {_keys(content)}'
        raise UserError(f'there are no averaged weights in it: {there}. Leave ema out, or give checkpoint_key.')
    if found:
        return _tensors(models[found[0]]), '.'.join(found[0])
    # No SwinV2: the keys of what there is will say what it is.
    for name in (*_CONTAINERS, ''):
        if there := _named(node.get(name) if name else node):
            return _tensors(there), '.'.join((*place, name)).strip('.')
    raise UserError(f'there are no weights in it: its keys are {_keys(node)}.')


def _at(node: Any, key: str) -> Any:
    """What lies under a key, or under several that are joined by dots; None for nothing."""
    if not isinstance(node, Mapping) or key in node:
        return node.get(key) if isinstance(node, Mapping) else None
    head, _, rest = key.partition('.')
    return _at(node.get(head), rest) if rest else None


def _nothing_at(content: Mapping[str, Any], checkpoint_key: str) -> str:
    models = dict(_models_in(content))
    if any(key.startswith(f'{checkpoint_key}.') for found in models.values() for key in found):
        return (
            f'checkpoint_key={checkpoint_key!r} is the beginning of names there; give prefix={checkpoint_key!r} '
            '(--prefix) instead.'
        )
    there = f'SwinV2 weights are under {_spelled(models)}' if models else f'its keys are {_keys(content)}'
    return f'it has no weights under checkpoint_key={checkpoint_key!r}; {there}.'


def _models_in(node: Any, path: Place = ()) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every SwinV2 in the content of a checkpoint, but for the states of optimizers, with the keys that lead to it."""
    found = _named(node)
    if has_backbone(found):
        yield path, found
    for name, inside in node.items() if len(path) < 4 else ():
        if isinstance(inside, Mapping) and isinstance(name, str) and 'optim' not in name:
            yield from _models_in(inside, (*path, name))


def _named(node: Any) -> dict[str, Tensor | Array]:
    items = node.items() if isinstance(node, Mapping) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor | Array)}


def _tensors(named: Mapping[str, Tensor | Array]) -> dict[str, Tensor]:
    """The same with tensors for NumPy's arrays."""
    tensors = {}
    for key, value in named.items():
        try:
            tensors[key] = value.numbers() if isinstance(value, Array) else value
        except ValueError as error:
            raise UserError(
                f'the array {key} cannot be read: it has {error}. Save it as float32, or without this key.'
            ) from None
    return tensors


def _spelled(places: Iterable[Place]) -> str:
    return listed(['.'.join(place) or '(its top level)' for place in places])


def _keys(content: Mapping[str, Any]) -> str:
    return listed(list(content), 8) or '(none)'


def _windows(
    source: Source, content: Mapping[str, Any], conversion: Conversion, given: Sequence[int | Pair] | None
) -> tuple[Windows | None, Windows | None, str]:
    """Look for the windows in every place that may tell them, the weights themselves first."""
    geometry, own = conversion.geometry, conversion.window_size
    stages = len(geometry.depths)
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    told = [
        ('its coordinate tables' if own else 'its weights', own, conversion.pretrained_window_sizes),
        ('its meta', pairs(meta.get('window_size'), stages), pairs(meta.get('pretrained_window_sizes'), stages)),
        ('config.json', *windows_of_hugging_face(source.config, geometry.patch_size, stages)),
    ]
    release = source.release or _named_backbone(source.config)
    if release is not None and release.arch == geometry.arch:
        windows, pretrained = release.window_size, release.pretrained_window_sizes
        told.append(('the catalogue', pairs(windows, stages), pairs(pretrained, stages)))
    windows = next((windows for _, windows, _ in told if windows), None)
    teller, pretrained = next(((teller, known) for teller, _, known in told if known), ('nothing', None))
    if given is None:
        return windows, pretrained, teller
    wanted = pairs(given, stages)
    if wanted is None:
        raise UserError(
            f'pretrained_window_sizes={given!r} must be whole numbers from 1, one for each of the '
            f'{stages} stages, or one for all.'
        )
    if pretrained not in (None, wanted):
        raise UserError(
            f'pretrained_window_sizes={plain(wanted)} contradicts {teller}, which gives '
            f'{plain(pretrained)}; leave it out.'
        )
    return windows, wanted, teller if pretrained else 'you'


def _named_backbone(config: Mapping[str, Any]) -> Release | None:
    """The release that Hugging Face's config names as its backbone, where it does not describe it."""
    known, changes = find(str(config.get('backbone'))), config.get('backbone_kwargs') or {}
    return known[0] if known and not any('size' in name for name in changes) else None


def as_state(pretrained: Windows | None) -> dict[str, Tensor]:
    """The entry of a backbone's state_dict for its pretrained windows; empty if they are unknown."""
    return {} if pretrained is None else {PRETRAINED_KEY: torch.tensor(pretrained)}


def fetch(name: str, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a checkpoint in our names, and its meta; arguments and errors as :func:`open_checkpoint`.

    The first process converts into torch's cache; others on the machine wait for it and read its file. If the cache is
    not writable, every process converts for itself.
    """
    with ExitStack() as held:
        folder = cache_dir() / 'swinv2_mm'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder / '.lock').open('w'))
            fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        except OSError:
            return _convert(name, options)
        source = locate(name)
        paths = [path.resolve() for path in files_of(source.path)]
        states = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
        key = json.dumps([states, source.config, name, options, __version__])
        kept = folder / f'{source.path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.safetensors'
        if not kept.is_file():
            weights, meta = _convert(source, options)
            try:
                write_file(weights, kept, meta)
            except OSError:
                return weights, meta
        content = read_file(kept)
        return content['state_dict'], content['meta']


def _convert(name: str | Source, options: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    loaded = open_checkpoint(name, **options)
    return loaded.conversion.weights, loaded.meta()


def windows_of(name: str, **options: Any) -> Windows | None:
    """The pretrained windows of a checkpoint; a release is not downloaded for it."""
    known = None if os.path.exists(os.path.expanduser(name)) else find(name)
    if known is not None:
        return tuple((side, side) for side in known[0].pretrained_window_sizes)
    _, meta = fetch(name, **options)
    return pairs(meta['pretrained_window_sizes'], len(meta['depths']))
