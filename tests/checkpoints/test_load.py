"""Every checkpoint gets the windows that belong to it, and is converted once per machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.peers import coords_table

from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints import catalog, load, sources
from swinv2_mm.checkpoints.catalog import File, Release
from swinv2_mm.checkpoints.convert import export_state_dict
from swinv2_mm.checkpoints.load import fetch, open_checkpoint, windows_of
from swinv2_mm.checkpoints.windows import plain
from swinv2_mm.errors import UserError
from swinv2_mm.sizes import VARIANTS, Variant

TINY = dict(embed_dims=16, depths=(1, 2), num_heads=(1, 2), out_indices=(0, 1))
RELEASED = 'swinv2_tiny_patch4_window8_256'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of downloads, in the place of the user's."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.chdir(tmp_path)
    return sources.cache_dir()


def state(layout='timm', seed=0):
    torch.manual_seed(seed)
    return export_state_dict(SwinTransformerV2(**TINY).state_dict(), layout)[0]


def save(path, layout='timm', seed=0, **beside):
    """A file that does not tell its windows, unless something beside the weights does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = state(layout, seed)
    save_file(weights, path) if path.suffix == '.safetensors' else torch.save({'state_dict': weights, **beside}, path)
    return str(path)


def refusal(*arguments, **options):
    """What is said of a checkpoint that is not opened, in one paragraph."""
    with pytest.raises(UserError) as caught:
        open_checkpoint(*arguments, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def tables(window, pretrained):
    return {
        f'layers.{i}.blocks.{j}.attn.relative_coords_table': coords_table([w, w], [p, p]).float()
        for i, (w, p) in enumerate(zip(window, pretrained, strict=True))
        for j in range(TINY['depths'][i])
    }


HF = dict(model_type='swinv2', image_size=64, window_size=16)  # maps of 16x16 and 8x8
WINDOWS = [
    ('timm', {}, None, None, 'nothing'),
    ('timm', dict(meta=dict(window_size='8')), None, None, 'nothing'),
    ('timm', dict(meta=3), None, None, 'nothing'),
    ('timm', dict(meta=dict(window_size=[8, [4, 8]], pretrained_window_sizes=6)), [8, [4, 8]], [6, 6], 'its meta'),
    ('huggingface', dict(config=HF), [16, 8], [16, 8], 'config.json'),
    ('huggingface', dict(config=HF | dict(pretrained_window_sizes=[0, 0])), [16, 8], [16, 8], 'config.json'),
    ('huggingface', dict(config=HF | dict(pretrained_window_sizes=[12, 6])), [16, 8], [12, 6], 'config.json'),
    ('huggingface', dict(config=HF | dict(pretrained_window_sizes=[12])), None, None, 'nothing'),
    ('huggingface', dict(config=HF | dict(pretrained_window_sizes=12)), None, None, 'nothing'),
    ('huggingface', dict(config=HF | dict(model_type='swin')), None, None, 'nothing'),
]


@pytest.mark.parametrize(('layout', 'beside', 'window', 'pretrained', 'told_by'), WINDOWS)
def test_windows_are_found_in_every_place_that_tells_them(layout, beside, window, pretrained, told_by, tmp_path):
    """Whatever knows the windows is asked. Bug: weights load without a word, and their position bias is a wrong one."""
    config = beside.get('config')
    if config:
        (tmp_path / 'config.json').write_text(json.dumps(config))
    path = save(tmp_path / ('pytorch_model.bin' if config else 'w.pth'), layout, **{} if config else beside)
    loaded = open_checkpoint(path)
    assert plain(loaded.window_size) == window and plain(loaded.pretrained_window_sizes) == pretrained
    assert loaded.told_by == told_by
    meta = loaded.meta()
    assert (meta['window_size'], meta['pretrained_window_sizes']) == (window, pretrained)
    assert json.loads(json.dumps(meta)) == meta
    if pretrained is None:
        given = open_checkpoint(path, pretrained_window_sizes=[6])
        assert (plain(given.pretrained_window_sizes), given.told_by) == ([6, 6], 'you')
    else:
        assert open_checkpoint(path, pretrained_window_sizes=pretrained).told_by == told_by
        message = refusal(path, pretrained_window_sizes=[5])
        assert f'contradicts {told_by}' in message and str(pretrained) in message
    for wrong in ([1, 2, 3], [0], ['8'], [], 0):
        assert 'one for each of the 2 stages' in refusal(path, pretrained_window_sizes=wrong)


def test_windows_in_the_weights_take_precedence(tmp_path, monkeypatch):
    """Tables, then the catalogue for its own size. Bug: a fine-tuned copy of a release gets the release's windows."""
    monkeypatch.setitem(VARIANTS, 'mini', Variant(16, (1, 2), (1, 2)))
    for arch in ('mini', 'tiny'):
        release = Release('mini', arch, 64, (8, 8), (6, 6), 'data', None, (File('timm', 'https://host/mini.pth'),))
        monkeypatch.setitem(catalog._INDEX, 'mini.pth', (release, release.files[0]))
        loaded = open_checkpoint(save(tmp_path / 'mini.pth'))
        known = ([6, 6], 'the catalogue') if arch == 'mini' else (None, 'nothing')
        assert (plain(loaded.pretrained_window_sizes), loaded.told_by) == known
    meta = dict(window_size=[8, 8], pretrained_window_sizes=[8, 8])
    torch.save({'state_dict': state() | tables((16, 8), (12, 6)), 'meta': meta}, tmp_path / 'mini.pth')
    loaded = open_checkpoint('mini.pth')
    assert (plain(loaded.window_size), plain(loaded.pretrained_window_sizes)) == ([16, 8], [12, 6])
    assert loaded.told_by == 'its coordinate tables'
    assert windows_of(RELEASED) == ((8, 8),) * 4  # known without fetching it


@pytest.fixture
def conversions(monkeypatch):
    """Counts them."""
    calls, convert = [], load.convert_state_dict
    monkeypatch.setattr(load, 'convert_state_dict', lambda *a, **k: calls.append(1) or convert(*a, **k))
    return calls


def test_fetch_converts_once(tmp_path, conversions):
    """What was converted is found again, and made anew when its source changes. Bug: stale weights, or windows."""
    path = tmp_path / 'folder' / 'model.safetensors'
    changes = [lambda seed=seed: save(path, 'huggingface', seed) for seed in range(2)]
    changes += [
        lambda config=config: (path.parent / 'config.json').write_text(json.dumps(config))
        for config in (HF, HF | dict(pretrained_window_sizes=[12, 6]))
    ]
    results = []
    for number, change in enumerate(changes, 1):
        change()
        (weights, meta), (again, same) = fetch('folder'), fetch('folder')
        assert len(conversions) == number and meta == same
        assert all(torch.equal(tensor, again[key]) for key, tensor in weights.items())
        expected = open_checkpoint('folder')
        conversions.pop()
        assert all(torch.equal(tensor, weights[key]) for key, tensor in expected.conversion.weights.items())
        results.append(meta['pretrained_window_sizes'])
    assert results == [None, None, [16, 8], [12, 6]]
    fetch('folder', ema=False)
    assert len(conversions) == len(changes) + 1  # other options, another result


@pytest.mark.parametrize('reason', ['no folder', 'disk full'])
def test_fetch_works_without_a_cache(reason, cache, tmp_path, conversions, monkeypatch):
    """Bug: a cache that cannot be written to stops a training that could convert for itself."""
    if reason == 'no folder':
        (tmp_path / 'torch').write_text('a file, where the cache would be')
    else:

        def full(*_):
            raise OSError('disk full')

        monkeypatch.setattr(load, 'write_file', full)
    path = save(tmp_path / 'w.pth')
    for number in (1, 2):
        weights, meta = fetch(path)
        assert len(conversions) == number and meta['embed_dims'] == 16
        assert torch.equal(weights['patch_embed.proj.bias'], state()['patch_embed.proj.bias'])


WORKER = """
import os, sys, time
from pathlib import Path
from swinv2_mm.checkpoints import load
convert = load.convert_state_dict

def slow(*arguments, **options):
    with open('conversions', 'a') as file:
        file.write(sys.argv[1])
    while len(list(Path().glob('ready-*'))) < 2:
        time.sleep(0.01)
    time.sleep(0.5)
    return convert(*arguments, **options)

load.convert_state_dict = slow
Path('ready-' + sys.argv[1]).touch()
weights, meta = load.fetch('w.pth')
print(sum(float(tensor.double().sum()) for tensor in weights.values()), meta['source_sha256'])
"""


def test_processes_that_start_together_convert_once(cache, tmp_path):
    """Bug: eight processes of one training convert, or write, at the same time, and one of them reads half a file."""
    save(tmp_path / 'w.pth')
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(Path(load.__file__).parents[2]))
    workers = [
        subprocess.Popen(
            [sys.executable, '-c', WORKER, name],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in 'ab'
    ]
    results = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], results
    assert results[0][0] == results[1][0] != ''
    assert len((tmp_path / 'conversions').read_text()) == 1
    assert [path.suffix for path in (cache / 'swinv2_mm').glob('[!.]*')] == ['.safetensors']
