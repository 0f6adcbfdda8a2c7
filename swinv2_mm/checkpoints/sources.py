"""Find the file for a name: a path, a URL, a released checkpoint, or a model on the Hugging Face hub."""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import urlparse

import torch

from swinv2_mm.checkpoints.catalog import RELEASES, File, Release, find
from swinv2_mm.checkpoints.files import INDEX, files_of, read_weights, sha256
from swinv2_mm.errors import UserError, did_you_mean, listed, say

# In the order of Hugging Face; the shards of the second and fourth are beside them.
_HUB_FILES = tuple(name + end for name in ('model.safetensors', 'pytorch_model.bin') for end in ('', INDEX))
_SUFFIXES = ('.pth', '.bin', '.safetensors', '.pt', '.ckpt', '.pkl')


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        name: As the user gave it.
        path: The file; of a sharded model its index.
        release: The catalogue's entry; None for another file.
        config: ``config.json`` beside the weights in a Hugging Face folder; empty if there is none.
        known_hash: The first digits of its SHA-256, if they are published.
    """

    name: str
    path: Path
    release: Release | None
    config: dict[str, object]
    known_hash: str | None = None

    def digest(self) -> str:
        """The SHA-256 of the file, or of index and shards; a UserError if it differs from that of the release."""
        digest = sha256(*files_of(self.path))
        if self.known_hash and not digest.startswith(self.known_hash):
            raise UserError(
                f'{self.path} is not the file that was released: its SHA-256 starts with '
                f'{digest[: len(self.known_hash)]} instead of {self.known_hash}. Delete it, and it is fetched again.'
            )
        return digest


def locate(name: str) -> Source:
    """Find the file; download it into torch's or Hugging Face's cache if it is not there.

    Args:
        name: A path; a folder saved by Hugging Face or in its cache; a URL; a released name, such as
            ``swinv2_tiny_patch4_window8_256``; or ``hf://owner/name``.

    Raises:
        UserError: The name is unknown, the file cannot be fetched, or its hash is wrong; the message says what to fetch
            by hand and where to put it.
    """
    path = Path(name).expanduser()
    known = find(name)
    if '://' not in name and path.exists():
        known = known or find(path.name) or _of_hub_cache(path)
        return _local(name, path, known[0] if known else None)
    if known is None and '://' not in name:
        files = [str(file) for file in path.parent.glob('*') if file.suffix in _SUFFIXES]
        close = get_close_matches(name, [*RELEASES, *files], n=3, cutoff=0.7)
        hint = did_you_mean(close) or f' Released are {", ".join(RELEASES)}.'
        raise UserError(
            f'{name} is neither a file (the current folder is {Path.cwd()}) nor a released checkpoint.{hint}'
        )
    release, location = (known[0], known[1].location) if known else (None, name)
    if location.startswith('hf://'):
        return _local(name, _from_hub(location), release)
    if not location.startswith(('http://', 'https://')):
        raise UserError(f'{name}: only https://, http:// and hf:// can be fetched.')
    published = published_hash(location)
    return Source(name, _from_url(location, published, release), release, {}, published)


def published_hash(url: str) -> str | None:
    """The first digits of the SHA-256, which torchvision and OpenMMLab put into the name; digits alone are a date."""
    match = re.search(r'-([0-9a-f]{8,64})\.\w+$', urlparse(url).path)
    return match[1] if match and not match[1].isdigit() else None


def _of_hub_cache(path: Path) -> tuple[Release, File] | None:
    """The release whose folder in Hugging Face's cache, ``models--owner--name``, has this path."""
    names = [folder.name for folder in (path, *path.absolute().parents) if folder.name.startswith('models--')]
    return find('/'.join(names[0].split('--')[1:])) if names else None


def _local(name: str, path: Path, release: Release | None) -> Source:
    """A file, or a folder with one."""
    path = _file_in(name, _snapshot(name, path)) if path.is_dir() else path
    part = re.search(r'-(\d+)-of-(\d+)\.(safetensors|bin)$', path.name)
    if part and int(part[2]) > 1:
        raise UserError(f'{name} is one of {int(part[2])} files that hold the weights together; give its folder.')
    beside, config = path.parent / 'config.json', {}
    if (path.name in _HUB_FILES or path.name.endswith(INDEX)) and beside.is_file():
        try:
            config = json.loads(beside.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f'{beside} cannot be read: {error}.') from error
    return Source(name, path, release, config if isinstance(config, dict) else {})


def _snapshot(name: str, folder: Path) -> Path:
    """The version of a model in Hugging Face's cache that ``main`` stands for, or the only one; other folders stay."""
    versions = folder if folder.name == 'snapshots' else folder / 'snapshots'
    if not versions.is_dir():
        return folder
    main, there = versions.parent / 'refs' / 'main', sorted(path for path in versions.iterdir() if path.is_dir())
    current = versions / (main.read_text().strip() if main.is_file() else '')
    if current in there:
        return current
    if len(there) != 1:
        raise UserError(
            f'{name} holds {len(there)} versions of a model; give the folder of one: {listed(there) or "-"}.'
        )
    return there[0]


def _file_in(name: str, folder: Path) -> Path:
    """The weights in a folder, as Hugging Face looks for them."""
    for file in _HUB_FILES:
        if (folder / file).is_file():
            return folder / file
        if (folder / file).is_symlink():
            raise UserError(
                f'{folder / file} is a link to a file that is not there, as after an interrupted download or a copy of '
                'links alone. Fetch the model again, by hf://owner/name.'
            )
    there = sorted(folder.iterdir())
    models = [path for path in there if path.name.startswith('models--')]
    weights = [path for path in there if path.suffix in _SUFFIXES]
    hint = 'name the file.'
    if models or weights:
        hint = f'give {listed([*weights, *models], 3)}.'
    elif (folder / '.metadata').is_file():
        hint = f'first run python -m torch.distributed.checkpoint.format_utils dcp_to_torch {name} FILE.'
    elif any(path.name in ('tf_model.h5', 'flax_model.msgpack') for path in there):
        hint = 'transformers can save them, by from_pretrained(folder, from_tf=True) and save_pretrained(other folder).'
    raise UserError(f'{name} is a folder without {" or ".join(_HUB_FILES[::2])}; {hint}')


def cache_dir() -> Path:
    """The cache of downloads and conversions, that of ``torch.hub`` (``TORCH_HOME`` moves it)."""
    return Path(torch.hub.get_dir(), 'checkpoints')


def _from_url(url: str, known_hash: str | None, release: Release | None) -> Path:
    name = os.path.basename(urlparse(url).path)
    if not name:
        raise UserError(f'{url} names no file.')
    if release is None and known_hash is None:  # many files are called model.safetensors
        name = f'{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}'
    path = cache_dir() / name
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        say(f'fetching {url}\n      to {path}')
        torch.hub.download_url_to_file(url, str(path), known_hash, progress=True)
    except RuntimeError as error:  # torch raises it for a wrong hash
        raise UserError(
            f'{url}: the downloaded file is not the one that was released ({error}). It was not kept. '
            'Try again; if it happens again, do not trust that server.'
        ) from error
    except OSError as error:  # urllib's errors are among them
        hash_hint = f' (SHA-256 {known_hash}…)' if known_hash else ''
        raise UserError(
            f'{url} cannot be fetched: {error}. Without a network: fetch it elsewhere{hash_hint}, and put '
            f'it at {path}, or give its path instead.'
        ) from error
    try:
        read_weights(path)
    except UserError as error:  # a login page, or half of the file
        path.unlink()
        raise UserError(f'{url}: the download was not kept. {error}') from error
    return path


def _from_hub(location: str) -> Path:
    """The folder of ``hf://owner/name``, or ``hf://owner/name@revision``."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    except ImportError as error:
        raise UserError(f'{location}: huggingface_hub is needed to fetch it; pip install huggingface_hub.') from error
    repo, _, revision = location.removeprefix('hf://').partition('@')
    try:
        if not re.fullmatch(r'[\w.-]+/[\w.-]+', repo):
            raise HFValidationError
        for file in _HUB_FILES:
            whole = Path(file.removesuffix(INDEX))
            patterns = ['config.json', file, *([f'{whole.stem}-*-of-*{whole.suffix}'] if file.endswith(INDEX) else [])]
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
            if (folder / file).is_file():
                return folder
    except HFValidationError as error:
        example = 'hf://microsoft/swinv2-tiny-patch4-window8-256'
        raise UserError(f'{location}: expected hf://owner/name, as in {example}.') from error
    except RepositoryNotFoundError as error:
        raise UserError(f'{location}: Hugging Face has no such model, or hides it without a login.') from error
    except (HfHubHTTPError, OSError) as error:  # offline, an OSError too
        raise UserError(
            f'{location} cannot be fetched: {" ".join(str(error).split())[:200]} Without a network: fetch config.json '
            f'and {_HUB_FILES[0]} of https://huggingface.co/{repo} elsewhere, put both into a folder, and give the '
            'path of that folder instead.'
        ) from error
    raise UserError(f'{location} holds neither {" nor ".join(_HUB_FILES[::2])}.')
