"""Load any checkpoint: find the file, read and convert it, and find out its windows."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from swinv2_mm import __version__
from swinv2_mm.checkpoints.catalog import find
from swinv2_mm.checkpoints.convert import Conversion, convert_state_dict
from swinv2_mm.checkpoints.files import read_file, weights_in, write_file
from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY
from swinv2_mm.checkpoints.sources import Source, cache_dir, locate
from swinv2_mm.checkpoints.windows import Pair, Windows, pairs, plain, windows_of_hugging_face
from swinv2_mm.errors import UserError


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
        digest: SHA-256 of the file.
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
    pretrained_window_sizes: Sequence[int | Pair] | None = None,
) -> Loaded:
    """Fetch, read, convert and check a checkpoint of any known layout.

    Args:
        name: As for :func:`~swinv2_mm.checkpoints.sources.locate`, or its result.
        layout, prefix: As for :func:`~swinv2_mm.checkpoints.convert.convert_state_dict`.
        ema: Take the running average of the weights.
        pretrained_window_sizes: One per stage, for files that do not tell.

    Raises:
        UserError: The file cannot be fetched, read or converted, or contradicts ``pretrained_window_sizes``.
    """
    source = name if isinstance(name, Source) else locate(name)
    content = read_file(source.path)
    try:
        original, container = weights_in(content, ema)
        conversion = convert_state_dict(original, layout=layout, prefix=prefix)
        windows, pretrained, told_by = _windows(source, content, conversion, pretrained_window_sizes)
    except UserError as error:
        raise UserError(f'{source.name}: {error}') from None
    return Loaded(source, conversion, windows, pretrained, told_by, original, container, source.digest())


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
    release = source.release
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
        path = source.path.resolve()
        state = path.stat()
        key = json.dumps([str(path), state.st_size, state.st_mtime_ns, source.config, name, options, __version__])
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
