"""From what a user names to weights in our names, with the windows that belong to them."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swinv2_mm.checkpoints.catalog import find
from swinv2_mm.checkpoints.convert import Conversion, convert_state_dict
from swinv2_mm.checkpoints.files import read_file, weights_in, write_file
from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY, Geometry, Pair
from swinv2_mm.checkpoints.sources import Source, cache_dir, locate
from swinv2_mm.errors import UserError

Windows = tuple[Pair, ...]


@dataclass(frozen=True)
class Loaded:
    """A converted checkpoint.

    Attributes:
        source: Where it comes from.
        conversion: Its weights in our names, and what became of every key.
        window_size: Per stage ``(rows, columns)``; None if nothing tells.
        pretrained_window_sizes: Likewise.
        told_by: What told the windows.
        original: The tensors as they are in the file.
        container: The key that they were under.
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

    def state(self) -> dict[str, Tensor]:
        """A state_dict of the backbone, with its pretrained windows if they are known."""
        return self.conversion.weights | as_state(self.pretrained_window_sizes)

    def meta(self) -> dict[str, Any]:
        """What is written beside the weights, in forms that JSON can hold."""
        geometry = self.conversion.geometry
        return dict(
            arch=geometry.arch,
            embed_dims=geometry.embed_dims,
            depths=list(geometry.depths),
            num_heads=list(geometry.num_heads),
            in_channels=geometry.in_channels,
            patch_size=geometry.patch_size,
            mlp_ratio=geometry.mlp_ratio,
            qkv_bias=geometry.qkv_bias,
            window_size=plain(self.window_size),
            pretrained_window_sizes=plain(self.pretrained_window_sizes),
            source=self.source.name,
            source_layout=self.conversion.layout,
            source_sha256=self.digest,
            swinv2_mm_version=_version(),
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
        name: What :func:`~swinv2_mm.checkpoints.sources.locate` takes, or what it returned.
        layout: A key of :data:`~swinv2_mm.checkpoints.layouts.LAYOUTS`; None recognises it.
        prefix: What stands before the keys of the backbone; None recognises it.
        ema: Take the running average of the weights.
        pretrained_window_sizes: For files that do not tell: one per stage.

    Raises:
        UserError: The file cannot be had, read or converted, or contradicts ``pretrained_window_sizes``.
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
    """Ask in turn whatever may know the windows; what is learned first from the weights themselves."""
    geometry = conversion.geometry
    stages = len(geometry.depths)
    meta = content.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    release = source.release if source.release and source.release.arch == geometry.arch else None
    told = (
        (
            conversion.window_size,
            conversion.pretrained_window_sizes,
            'its coordinate tables' if conversion.window_size else 'its weights',
        ),
        (pairs(meta.get('window_size'), stages), pairs(meta.get('pretrained_window_sizes'), stages), 'its meta'),
        (*_from_config_json(source.config, geometry), 'config.json'),
        (*windows_of_training(meta.get('cfg'), conversion.prefix, stages), 'the config of its training'),
        *(
            [(pairs(release.window_size, stages), pairs(release.pretrained_window_sizes, stages), 'the catalogue')]
            if release
            else []
        ),
    )
    _, pretrained, teller = next((row for row in told if row[1] is not None), (None, None, 'nothing'))
    windows = next((row[0] for row in told if row[0] is not None), None)
    wanted = pairs(given, stages)
    if given is not None and wanted is None:
        raise UserError(
            f'pretrained_window_sizes={given!r} must be whole numbers from 1, one for each of the '
            f'{stages} stages, or one for all.'
        )
    if wanted is None:
        return windows, pretrained, teller
    if pretrained is not None and pretrained != wanted:
        raise UserError(
            f'pretrained_window_sizes={plain(wanted)} contradicts {teller}, which gives '
            f'{plain(pretrained)}; leave it out.'
        )
    return windows, wanted, teller if pretrained else 'you'


def pairs(value: Any, stages: int, least: int = 1) -> Windows | None:
    """Spell windows out as ``(rows, columns)`` per stage; None for what cannot be windows."""
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        return None
    found = [
        (entry, entry) if isinstance(entry, int) else tuple(entry) if isinstance(entry, list | tuple) else ()
        for entry in value
    ]
    found = found * stages if len(found) == 1 else found
    whole = all(len(pair) == 2 and all(type(side) is int and side >= least for side in pair) for pair in found)
    return tuple(found) if whole and len(found) == stages else None


def plain(windows: Windows | None) -> list | None:
    """Square windows as numbers, others as lists of two: how people write them in a config."""
    return None if windows is None else [rows if rows == columns else [rows, columns] for rows, columns in windows]


def _from_config_json(config: Mapping[str, Any], geometry: Geometry) -> tuple[Windows | None, Windows | None]:
    """Hugging Face: one window, shrunk to the maps of ``image_size``; a pretrained window of 0 is that window."""
    size, window = config.get('image_size'), config.get('window_size')
    if config.get('model_type') != 'swinv2' or type(size) is not int or type(window) is not int or window < 1:
        return None, None
    stages = len(geometry.depths)
    sides = [max(1, size // geometry.patch_size // 2**i) for i in range(stages)]
    windows = [min(window, side) for side in sides]
    pretrained = config.get('pretrained_window_sizes') or [0] * stages
    if not isinstance(pretrained, list) or len(pretrained) != stages:
        return None, None
    return pairs(windows, stages), pairs([p or w for p, w in zip(pretrained, windows, strict=True)], stages)


def as_state(pretrained: Windows | None) -> dict[str, Tensor]:
    """The entry of a backbone's state_dict for its pretrained windows; none where they are not known."""
    return {} if pretrained is None else {PRETRAINED_KEY: torch.tensor(pretrained)}


def windows_of_training(text: Any, prefix: str, stages: int) -> tuple[Windows | None, Windows | None]:
    """The windows and pretrained windows of a backbone in the text of an mmengine config; it is parsed, not run.

    Args:
        text: As mmengine saves it in a checkpoint's meta: assignments of plain values.
        prefix: What stands before the backbone's keys in the checkpoint, such as ``'backbone.'``: where in
            ``model`` it is.
        stages: How many it has.
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


def _windows_of_arguments(arguments: dict, stages: int) -> tuple[Windows | None, Windows | None]:
    windows = pairs(arguments.get('window_size', 8), stages)
    pretrained = arguments.get('pretrained_window_sizes')
    if pretrained is None and any('Pretrained' in str(node.get('type')) for node in _dicts(arguments.get('init_cfg'))):
        return None, None  # it was read from the checkpoint that training started from
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
    """The value that a config's text gives a variable; None if it gives none, ... for what is no plain value."""
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


def fetch(name: str, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a checkpoint in our names, and its meta, converted once per machine.

    The first process that asks converts, into torch's cache; others on the machine wait for it, and later ones find
    what it wrote. Where the cache cannot be written to, every process converts for itself.

    Args:
        name: What :func:`~swinv2_mm.checkpoints.sources.locate` takes.
        options: Those of :func:`open_checkpoint`.

    Raises:
        UserError: As :func:`open_checkpoint`.
    """
    with ExitStack() as held:
        folder = cache_dir() / 'swinv2_mm'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_alone(folder / '.lock'))
        except OSError:
            return _convert(name, options)
        source = locate(name)
        path = source.path.resolve()
        state = path.stat()
        key = json.dumps([str(path), state.st_size, state.st_mtime_ns, source.config, name, options, _version()])
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


def _version() -> str:
    import swinv2_mm

    return swinv2_mm.__version__


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process of the machine in at a time."""
    with path.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


def windows_of(name: str, **options: Any) -> Windows | None:
    """The pretrained windows of a checkpoint; those of a release are known without fetching it."""
    known = None if os.path.exists(os.path.expanduser(name)) else find(name)
    if known is not None:
        return pairs(known[0].pretrained_window_sizes, len(known[0].pretrained_window_sizes))
    _, meta = fetch(name, **options)
    return pairs(meta['pretrained_window_sizes'], len(meta['depths']))
