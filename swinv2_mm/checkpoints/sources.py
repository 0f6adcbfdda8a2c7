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

from swinv2_mm.checkpoints.catalog import RELEASES, Release, find
from swinv2_mm.checkpoints.files import read_file, sha256
from swinv2_mm.errors import UserError, did_you_mean, say

_HUB_FILES = ('model.safetensors', 'pytorch_model.bin')


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        name: As the user gave it.
        path: The file.
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
        """The SHA-256 of the file; a UserError if it differs from that of the release."""
        digest = sha256(self.path)
        if self.known_hash and not digest.startswith(self.known_hash):
            raise UserError(
                f'{self.path} is not the file that was released: its SHA-256 starts with '
                f'{digest[: len(self.known_hash)]} instead of {self.known_hash}. Delete it, and it is fetched again.'
            )
        return digest


def locate(name: str) -> Source:
    """Find the file; download it into torch's or Hugging Face's cache if it is not there.

    Args:
        name: A path; a folder saved by Hugging Face; a URL; a released name, such as
            ``swinv2_tiny_patch4_window8_256``; or ``hf://owner/name``.

    Raises:
        UserError: The name is unknown, the file cannot be fetched, or its hash is wrong; the message says what to fetch
            by hand and where to put it.
    """
    path = Path(name).expanduser()
    known = find(name)
    if '://' not in name and path.exists():
        known = known or find(path.name)
        return _local(name, path, known[0] if known else None)
    if known is None and '://' not in name:
        files = [str(file) for file in path.parent.glob('*') if file.suffix in ('.pth', '.bin', '.safetensors', '.pt')]
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


def _local(name: str, path: Path, release: Release | None) -> Source:
    """A file, or a folder with one."""
    if path.is_dir():
        found = [path / file for file in _HUB_FILES if (path / file).is_file()]
        if not found:
            raise UserError(f'{name} is a folder without {" or ".join(_HUB_FILES)}; name the file.')
        path = found[0]
    beside, config = path.parent / 'config.json', {}
    if path.name in _HUB_FILES and beside.is_file():
        try:
            config = json.loads(beside.read_text())
        except (ValueError, OSError) as error:
            raise UserError(f'{beside} cannot be read: {error}.') from error
    return Source(name, path, release, config if isinstance(config, dict) else {})


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
        read_file(path)
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
        for pattern in _HUB_FILES:
            folder = Path(snapshot_download(repo, revision=revision or None, allow_patterns=['config.json', pattern]))
            if (folder / pattern).is_file():
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
    raise UserError(f'{location} holds neither {" nor ".join(_HUB_FILES)}.')
