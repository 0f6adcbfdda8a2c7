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

from swinv2_mm.checkpoints.unpickling import INERT, Array, load, load_plain
from swinv2_mm.errors import UserError, listed

# The header of a safetensors file holds only text: this entry is its `meta`, as JSON.
_META = 'swinv2_mm'
# Part of the number that files of torch before 1.6 start with.
_TORCH = b'\x8a\x0a\x6c\xfc'
# The ending of Hugging Face's lists of files that hold a model together.
INDEX = '.index.json'


def read_weights(path: Path) -> dict[str, Any]:
    """Read what :func:`read_file` reads, the index of a sharded model, or a pickle without torch, as of detectron2.

    NumPy's arrays are :class:`~swinv2_mm.checkpoints.unpickling.Array`; arguments and errors as :func:`read_file`.
    """
    if path.name.endswith(INDEX) and path.is_file():
        return {'state_dict': _read_shards(path)}
    if path.suffix == '.safetensors' or not _is_plain_pickle(_start(path)):
        return read_file(path)
    try:
        content = load_plain(path)
    except Exception as error:  # damaged bytes can raise almost any
        raise UserError(_why_unreadable(path, error)) from error
    return _checked(path, content)


def files_of(path: Path) -> list[Path]:
    """The files that hold the weights: the file itself, or an index and its shards; a UserError for a wrong index."""
    return [path, *dict.fromkeys(_shard_of_key(path).values())] if path.name.endswith(INDEX) else [path]


def _shard_of_key(index: Path) -> dict[str, Path]:
    """The name of each tensor, and the file that has it, by an index of Hugging Face; all files exist."""
    try:
        content = json.loads(index.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f'{index} cannot be read: {error}. Get it again.') from error
    names = content.get('weight_map') if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f'{index} is no index of shards: it has no weight_map of names and files. Get it again.')
    outside = sorted({name for name in names.values() if Path(name).name != name or name == '..' or '\\' in name})
    if outside:
        raise UserError(
            f'{index} is refused: it names files that are not beside it ({listed(outside)}). Put all shards into its '
            'folder, and correct weight_map.'
        )
    missing = sorted({name for name in names.values() if not (index.parent / name).is_file()})
    if missing:
        raise UserError(
            f'{index}: of its shards {listed(missing)} {"is" if len(missing) == 1 else "are"} missing. Get the whole '
            'folder again, by hf://owner/name if it is on the hub.'
        )
    return {key: index.parent / name for key, name in names.items()}


def _read_shards(index: Path) -> dict[str, Any]:
    """All tensors of a sharded model, none missing and none in two files."""
    shards = _shard_of_key(index)
    weights: dict[str, Any] = {}
    for path in dict.fromkeys(shards.values()):
        content = read_file(path)
        found = content['state_dict'] if path.suffix == '.safetensors' else content
        listed_here = {key for key, shard in shards.items() if shard == path}
        wrong = sorted(map(str, found.keys() ^ listed_here))
        if wrong:
            raise UserError(
                f'{path} is not the shard that {index.name} describes: only one of them has {listed(wrong)}. Get the '
                'whole folder again.'
            )
        weights |= found
    return weights


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
    start = _start(path)
    if path.suffix == '.safetensors':
        return _read_safetensors(path, start)
    zipped = start.startswith(b'PK\x03\x04')  # files older than torch 1.6 are not, and cannot be mapped
    if zipped and not zipfile.is_zipfile(path):
        raise UserError(f'{path} is damaged: its end is missing, as after an interrupted download or save.')
    if zipped and (other := _other_archive(path)):
        raise UserError(f'{path} is no checkpoint: it is {other}.')
    try:
        content = load(path, allow, mmap=zipped)
    except Exception as error:  # damaged bytes can raise almost any
        if 'Unsupported operand' in str(error) and (zipped or _TORCH in start):
            raise UserError(f'{path} was saved with another pickle_protocol than 2; save it without.') from error
        raise UserError(_why_unreadable(path, error, _looks_like(path, start))) from error
    return _checked(path, content)


def _start(path: Path) -> bytes:
    """The first bytes of a file that exists."""
    if not path.is_file():
        raise UserError(f'checkpoint {path} {"is a folder" if path.is_dir() else "does not exist"}.')
    with path.open('rb') as file:
        return file.read(512)


def _checked(path: Path, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict) or isinstance(content, Array):
        kind = 'array of NumPy' if isinstance(content, Array) else f'object of type {type(content).__name__}'
        raise UserError(f'{path} is no checkpoint: it holds an {kind}, not a dict of weights.')
    return content


def _read_safetensors(path: Path, start: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework='pt') as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        looks = 'a file of torch.save; give it the ending .pth' if start[:2] == b'PK' else _looks_like(path, start)
        raise UserError(
            f'{path} is no safetensors file, or an incomplete one'
            f'{f": it looks like {looks}" if looks else ""} ({error}). Get it again.'
        ) from error
    return {'state_dict': weights, 'meta': json.loads(header.get(_META, '{}'))}


def _why_unreadable(path: Path, error: Exception, looks: str = '') -> str:
    text = ' '.join(str(error).split())
    refused = re.search(r'GLOBAL ([\w.]+)|(?:function|but got) <(?:class|(?:built-in )?function) \'?([\w.]+)', text)
    if refused:
        return (
            f'{path} is refused, because reading it could run code: it asks for {refused[1] or refused[2]}. '
            'Weights need only tensors and numbers. If you trust its source, load it where nothing can be lost, and '
            'save its state_dict alone, by torch.save.'
        )
    if looks:
        return f'{path} is no checkpoint: it looks like {looks}.'
    # torch's UnpicklingError mostly explains how to turn the protection off.
    reason = '' if isinstance(error, UnpicklingError) else f' ({text.split(". ")[0] or type(error).__name__})'
    return f'{path} is no checkpoint, or a damaged one, such as an incomplete copy{reason}.'


_TO_SAFETENSORS = (
    'save its arrays by safetensors.numpy.save_file(dict(names_and_arrays), "weights.safetensors") where it was made'
)
_THEIR_PACKAGE = (
    'read it with the package that wrote it (for a model of transformers from_pretrained(folder, from_tf=True or '
    'from_flax=True)), and save PyTorch weights by save_pretrained(folder)'
)
# What people mistake for weights: how the name ends, how the file starts, and what it is.
_OTHERS = tuple(
    (re.compile(name), re.compile(start, re.DOTALL | re.IGNORECASE), words)
    for name, start, words in (
        ('', rb'$', 'an empty file'),
        (
            '',
            rb'version https://git-lfs',
            'the pointer of Git LFS to a file that was not fetched; run git lfs pull where it comes from',
        ),
        (
            '',
            rb'(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|body|\?xml|error)',
            'a web page in its place, such as that of a download that needs a login',
        ),
        (r'\.(h5|hdf5|keras)$', rb'', f'a file of Keras or TensorFlow; {_THEIR_PACKAGE}'),
        ('', rb'\x89HDF\r\n', f'an HDF5 file, as of Keras or TensorFlow; {_THEIR_PACKAGE}'),
        (r'\.(pb|tflite|ckpt\.(index|meta)|data-\d+-of-\d+)$', rb'', f'a file of TensorFlow; {_THEIR_PACKAGE}'),
        (r'\.msgpack$', rb'', f'a file of Flax (JAX); {_THEIR_PACKAGE}'),
        (r'\.onnx$', rb'', 'a graph of ONNX; take the checkpoint that it was exported from'),
        ('', rb'\x93NUMPY', f'one array of NumPy (.npy), without the names of a model; {_TO_SAFETENSORS}'),
        ('', rb'(\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd)', 'a compressed archive; unpack it'),
        ('', rb'.{257}ustar', 'a tar archive; unpack it'),
        ('', rb'PK\x05\x06', 'an empty zip archive'),
        (
            '',
            rb'.{5}\x00\x00\x00\{\s*"',
            'a safetensors file under another name; give it the ending .safetensors',
        ),
        (
            '',
            rb'\{.*"weight_map"',
            f'the index of a model in several files; give its folder, or a name that ends in {INDEX}',
        ),
        ('', rb'\s*[{\[]\s*["{\[]', 'a JSON file, such as a config or the message of a server; name the weights'),
    )
)


def _looks_like(path: Path, start: bytes) -> str:
    for name, begin, words in _OTHERS:
        if name.search(path.name.lower()) and begin.match(start):
            return words
    if _is_plain_pickle(start):
        return (
            "a pickle that torch did not write, as detectron2's; swinv2_mm.Pretrained and tools/convert_ckpt.py read it"
        )
    try:
        text, _ = codecs.utf_8_decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        return ''
    is_text = all(byte in b'\t\n\r' or byte >= 32 for byte in start)
    return f'a text file that starts with {text.strip()[:40]!r}' if is_text else ''


def _other_archive(path: Path) -> str:
    """What a complete zip archive is, unless torch wrote it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith('/data.pkl') for name in names):
        return ''
    if names and all(name.endswith('.npy') for name in names):
        return f'an archive of NumPy (.npz); {_TO_SAFETENSORS}'
    if any(name.endswith('.weights.h5') for name in names):
        return f'a file of Keras; {_THEIR_PACKAGE}'
    return f'a zip archive of {listed(names, 3) or "nothing"}; unpack it, and name the weights'


def _is_plain_pickle(start: bytes) -> bool:
    """Whether a file is a pickle of protocol 2 to 5, and none of torch before 1.6, which starts with a long number."""
    others = (_TORCH, b'\x00\x00\x00{')  # a header of safetensors
    return (
        start[:1] == b'\x80' and start[1:2] in b'\x02\x03\x04\x05' and not any(other in start[:32] for other in others)
    )


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


def sha256(*paths: str | os.PathLike) -> str:
    """The SHA-256 of a file, or of several one after another, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
