"""Read checkpoints as data, without running code from them, and write them crash-safe."""

import codecs
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from swinv2_mm.checkpoints.unpickling import INERT, load
from swinv2_mm.errors import UserError

# Where code bases keep the weights of a model, and their running averages.
_CONTAINERS = ('state_dict', 'model', 'model_state_dict', 'module', 'net')
_AVERAGED = ('model_ema', 'state_dict_ema', 'ema_state_dict', 'ema')
# The header of a safetensors file holds only text: this entry is its `meta`, as JSON.
_META = 'swinv2_mm'


def read_file(path: str | os.PathLike, allow: Sequence[Any] = INERT) -> dict[str, Any]:
    """Read a ``.pth``, ``.bin`` or ``.safetensors`` file; no code in it is run.

    Tensors are mapped rather than copied into memory where the format allows.

    Args:
        path: A local file.
        allow: Globals that a pickle may name, as for :func:`torch.serialization.safe_globals`.

    Returns:
        Its content; for a safetensors file ``dict(state_dict=…, meta=…)``.

    Raises:
        UserError: The file is missing, damaged, no checkpoint, or reading it would run code.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f'checkpoint {path} {"is a folder" if path.is_dir() else "does not exist"}.')
    with path.open('rb') as file:
        start = file.read(512)
    if path.suffix == '.safetensors':
        return _read_safetensors(path, start)
    zipped = start.startswith(b'PK\x03\x04')  # files older than torch 1.6 are not, and cannot be mapped
    if zipped and not zipfile.is_zipfile(path):
        raise UserError(f'{path} is damaged: its end is missing, as after an interrupted download or save.')
    try:
        content = load(path, allow, mmap=zipped)
    except Exception as error:  # damaged bytes can raise almost any
        raise UserError(_why_unreadable(path, start, error)) from error
    if not isinstance(content, dict):
        raise UserError(
            f'{path} is no checkpoint: it holds an object of type {type(content).__name__}, not a dict of weights.'
        )
    return content


def _read_safetensors(path: Path, start: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        looks = _looks_like(start)
        raise UserError(
            f'{path} is no safetensors file, or an incomplete one'
            f'{f": it looks like {looks}" if looks else ""} ({error}). Get it again.'
        ) from error
    return {'state_dict': weights, 'meta': json.loads(header.get(_META, '{}'))}


def _why_unreadable(path: Path, start: bytes, error: Exception) -> str:
    text = ' '.join(str(error).split())
    refused = re.search(r'GLOBAL ([\w.]+)|(?:function|but got) <(?:class|(?:built-in )?function) \'?([\w.]+)', text)
    if refused:
        return (
            f'{path} is refused, because reading it could run code: it asks for {refused[1] or refused[2]}. '
            'Weights need only tensors and numbers. If you trust its source, load it where nothing can be lost, and '
            'save its state_dict alone.'
        )
    looks = _looks_like(start)
    if looks:
        return f'{path} is no checkpoint: it looks like {looks}.'
    # torch's UnpicklingError mostly explains how to turn the protection off.
    reason = '' if isinstance(error, UnpicklingError) else f' ({text.split(". ")[0] or type(error).__name__})'
    return f'{path} is no checkpoint, or a damaged one, such as an incomplete copy{reason}.'


def _looks_like(start: bytes) -> str:
    if not start:
        return 'an empty file'
    if start.startswith(b'version https://git-lfs'):
        return 'the pointer of Git LFS to a file that was not fetched; run git lfs pull where it comes from'
    if start.lstrip().lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'a web page in its place, such as that of a download that needs a login'
    try:
        text, _ = codecs.utf_8_decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return ''
    is_text = all(byte in b'\t\n\r' or byte >= 32 for byte in start)
    return f'a text file that starts with {text.strip()[:40]!r}' if is_text else ''


def weights_in(content: Mapping[str, Any], ema: bool = False) -> tuple[dict[str, Tensor], str]:
    """Find the weights in the content of a checkpoint.

    Args:
        content: As :func:`read_file` returns it.
        ema: Take the running average of the weights. mmengine's EMAHook saves it as ``state_dict``, and the trained
            weights as ``ema_state_dict``.

    Returns:
        Names and tensors, and their key in the content, empty for none.

    Raises:
        UserError: There are no weights, or no average although ``ema`` asks for it.
    """
    swapped = 'ema_state_dict' in content and 'state_dict' in content
    names = ('state_dict',) if swapped else _AVERAGED if ema else _CONTAINERS
    for name in names:
        if found := _named_tensors(content.get(name)):
            return found, name
    keys = ', '.join(map(str, list(content)[:8])) or '(none)'
    if ema:
        raise UserError(
            f'there are no averaged weights in it: none of {", ".join(_AVERAGED)} is among its keys {keys}.'
        )
    if found := _named_tensors(content):
        return found, ''
    raise UserError(f'there are no weights in it: its keys are {keys}.')


def _named_tensors(node: Any) -> dict[str, Tensor]:
    items = node.items() if isinstance(node, Mapping) else ()
    return {key: tensor for key, tensor in items if isinstance(key, str) and isinstance(tensor, Tensor)}


def write_file(
    weights: Mapping[str, Tensor],
    path: str | os.PathLike,
    meta: Mapping[str, Any],
    container: str | None = 'state_dict',
) -> None:
    """Write weights; the file appears complete or not at all.

    Args:
        weights: Names and tensors.
        path: ``.safetensors``, with ``meta`` in its header; any other name is written by :func:`torch.save`.
        meta: Plain values, as JSON can hold them.
        container: The key of the weights in a ``.pth``, beside ``meta``; None for the weights alone.

    Raises:
        OSError: It cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path, weights, meta = Path(path), dict(weights), dict(meta)
    failure = SafetensorError if path.suffix == '.safetensors' else RuntimeError  # raised on a full disk
    try:
        with replacing(path) as partial:
            if path.suffix == '.safetensors':
                save_file(weights, partial, metadata={'format': 'pt', _META: json.dumps(meta)})
            else:
                torch.save({container: weights, 'meta': meta} if container else weights, partial)
    except failure as error:
        raise OSError(f'{str(error).splitlines()[0]} (is the disk full?)') from error


PARTIAL = '.*.partial'  # the temporary files that `replacing` leaves if the process is killed


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Replace a file atomically, once the new one is complete and on disk.

    Yields:
        The temporary name, in the same folder, to write to. At the end it is renamed to ``path``; after an exception
        it is deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{uuid4().hex[:8]}.partial')
    partial.touch(exist_ok=False)
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)  # safetensors replaces it by a file that only its owner can read
        _flush(partial)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
    _flush(path.parent)  # so that the name, too, survives a power cut


def _flush(path: str | os.PathLike) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
