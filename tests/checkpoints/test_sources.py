"""From a name to a file: paths, URLs, released names, the Hugging Face hub."""

import hashlib
import http.server
import os
import sys
import threading
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from requests import Response
from safetensors.torch import save_file

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import catalog, sources
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.load import open_checkpoint
from swinv2_mm.checkpoints.sources import locate
from swinv2_mm.errors import UserError

TINY = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))
RELEASED = 'swinv2_tiny_patch4_window8_256'
OPENMMLAB = 'swinv2-tiny-w8_3rdparty_in1k-256px'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of downloads, in the place of the user's."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.chdir(tmp_path)
    assert sources.cache_dir() == tmp_path / 'torch' / 'hub' / 'checkpoints'
    return sources.cache_dir()


def kept(cache):
    """What lies in the cache, besides conversions."""
    return sorted(path.name for path in cache.glob('*') if path.is_file())


def save(path, layout='timm', seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    weights, _ = export_state_dict(SwinTransformerV2(**TINY).state_dict(), layout)
    save_file(weights, path) if path.suffix == '.safetensors' else torch.save({'state_dict': weights}, path)
    return str(path)


@pytest.fixture
def server():
    """A server on this machine: ``pages`` maps paths to answers, ``asked`` lists the requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.send_header('Content-Length', str(len(page or b'') + (1000 if 'broken' in self.path else 0)))
            self.end_headers()
            self.wfile.write(page or b'')

        def log_message(self, *_):
            pass

    pages, asked = {}, []
    served = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    yield f'http://127.0.0.1:{served.server_port}', pages, asked
    served.shutdown()
    served.server_close()


def refusal(call, *arguments, **options):
    """The message, which is one paragraph."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_paths_and_folders_are_found(tmp_path):
    """A folder of Hugging Face stands for its weights and config. Bug: the config, and its windows, are passed over."""
    path = save(tmp_path / 'folder' / 'model.safetensors', 'huggingface')
    assert locate(path).path == Path(path) and locate(path).config == {}
    (tmp_path / 'folder' / 'config.json').write_text('{"window_size": 8}')
    for name in ('folder', path, './folder/model.safetensors'):
        assert locate(name).path.samefile(path) and locate(name).config == {'window_size': 8}
    os.rename(path, tmp_path / 'folder' / 'pytorch_model.bin')
    assert locate('folder').path.name == 'pytorch_model.bin'
    (tmp_path / 'folder' / 'config.json').write_text('{"window_size": ')
    assert 'config.json cannot be read' in refusal(locate, 'folder')
    (tmp_path / 'empty').mkdir()
    assert 'without model.safetensors or pytorch_model.bin' in refusal(locate, 'empty')


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('swinv2_tiny_patch4_window8_257', f'Did you mean {RELEASED}'),
        ('weihgts.pth', 'Did you mean weights.pth'),
        ('something', 'Released are swinv2_tiny_patch4_window8_256'),
        ('file:///weights.pth', 'only https://, http:// and hf:// can be fetched'),
        ('ftp://host/weights.pth', 'only https://, http:// and hf:// can be fetched'),
        ('hf://swinv2', 'expected hf://owner/name'),
        ('hf://owner/a..b', 'expected hf://owner/name'),
        ('https://host/', 'names no file'),
    ],
)
def test_an_unknown_name_gets_a_hint(name, words, tmp_path):
    """Bug: a KeyError, or a download of something else, for a name that was mistyped."""
    (tmp_path / 'weights.pth').write_text('')
    assert words in refusal(locate, name)


def test_urls_are_fetched_once(server, cache, tmp_path, capsys):
    """The file lies where torch.hub keeps files; a known hash is checked. Bug: every start of a training fetches."""
    host, pages, asked = server
    data = Path(save(tmp_path / 'own.pth')).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    pages[f'/w-{digest[:8]}.pth'] = pages['/w-20240115.pth'] = data
    for name in (f'w-{digest[:8]}.pth', 'w-20240115.pth'):  # the latter is a date, no hash
        for _ in range(2):
            source = locate(f'{host}/{name}')
            assert source.path.read_bytes() == data and source.digest() == digest
            assert source.path.is_relative_to(cache)
    assert asked == list(pages)
    assert f'w-{digest[:8]}.pth' in kept(cache)
    assert capsys.readouterr().out == ''  # stdout is for reports


def test_files_of_the_same_name_are_kept_apart(server, tmp_path):
    """Bug: all of the hub's files are called model.safetensors, and the second URL gives the weights of the first."""
    host, pages, _ = server
    for seed, folder in enumerate(('a', 'b')):
        pages[f'/{folder}/model.safetensors'] = Path(save(tmp_path / folder / 'w.safetensors', seed=seed)).read_bytes()
    for path, data in pages.items():
        assert locate(host + path).path.read_bytes() == data


@pytest.mark.parametrize(
    ('page', 'words'),
    [
        ('/gone.pth', 'HTTP Error 404'),
        ('/w-00000000e.pth', 'not the one that was released'),
        ('/page.pth', 'a web page'),
        ('/broken.pth', 'damaged'),
    ],
)
def test_a_failed_download_leaves_nothing(page, words, server, cache, tmp_path):
    """Bug: half a file, or the page that asks for a login, is found in the cache for ever after."""
    host, pages, _ = server
    data = Path(save(tmp_path / 'own.pth')).read_bytes()
    pages |= {'/w-00000000e.pth': data, '/page.pth': b'<html>log in</html>', '/broken.pth': data[:-1000]}
    message = refusal(locate, host + page)
    assert words in message and host + page in message
    assert kept(cache) == []


@pytest.mark.parametrize(
    ('name', 'hints'),
    [
        (RELEASED, [f'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/{RELEASED}.pth']),
        (OPENMMLAB, [f'{OPENMMLAB}_20220803-e318968f.pth', 'SHA-256 e318968f']),
        ('swin_v2_t', ['https://download.pytorch.org/models/swin_v2_t-b137f0e2.pth', 'SHA-256 b137f0e2']),
    ],
)
def test_without_a_network_a_released_name_says_what_to_fetch(name, hints, cache, tmp_path, monkeypatch):
    """The message says what to fetch and where to put it; what lies there is used. Bug: useless without a network."""

    def offline(*_, **__):
        raise URLError('no route to host')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', offline)
    message = refusal(open_checkpoint, name)
    path = cache / Path(catalog.find(name)[1].location).name
    assert all(hint in message for hint in [*hints, f'put it at {path},'])
    save(path)
    source = locate(name)
    assert source.path == path and source.release is catalog.find(name)[0]
    if len(hints) > 1:  # another file under the name of the release
        message = refusal(open_checkpoint, name)
        assert f'{path} is not the file that was released' in message and 'Delete it' in message
    else:
        assert open_checkpoint(name).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def hub_error(kind):
    response = Response()
    response.status_code = 404
    return kind('no\nanswer', response=response)


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (LocalEntryNotFoundError('cannot reach\nthe hub'), 'cannot reach the hub Without a network: fetch config.json'),
        (ConnectionError('no route'), 'put both into a folder, and give the path of that folder'),
        (hub_error(HfHubHTTPError), 'cannot be fetched: no answer'),
        (hub_error(RepositoryNotFoundError), 'no such model'),
        (None, 'holds neither model.safetensors nor pytorch_model.bin'),
    ],
)
def test_failures_of_the_hub_are_explained(error, words, tmp_path, monkeypatch):
    """Bug: a page of nested tracebacks of the package that fetches."""

    def download(*_, **__):
        if error is not None:
            raise error
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    message = refusal(locate, 'hf://owner/name@main')
    assert words in message and 'hf://owner/name' in message


def test_a_model_of_the_hub_is_found_in_its_folder(tmp_path, monkeypatch):
    """Weights and config come from one snapshot. Bug: the config is left behind, or a model without safetensors."""
    save(tmp_path / 'pytorch_model.bin', 'huggingface')
    (tmp_path / 'config.json').write_text('{"model_type": "swinv2"}')
    asked = []

    def download(repo, revision=None, allow_patterns=()):
        asked.append((repo, revision, *allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
    source = locate('hf://owner/name@v1')
    assert (source.path.name, source.config) == ('pytorch_model.bin', {'model_type': 'swinv2'})
    assert asked[0] == ('owner/name', 'v1', 'config.json', 'model.safetensors')
    os.rename(tmp_path / 'pytorch_model.bin', tmp_path / 'model-00001-of-00001.safetensors')
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert locate('hf://owner/name').path == index
    assert asked[-1] == ('owner/name', None, 'config.json', index.name, 'model-*-of-*.safetensors')
    assert locate('microsoft/swinv2-tiny-patch4-window8-256').release.name == RELEASED
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert 'pip install huggingface_hub' in refusal(locate, 'hf://owner/name')
