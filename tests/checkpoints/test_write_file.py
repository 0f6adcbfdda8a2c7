"""Writing a checkpoint leaves a complete file or none."""

import hashlib
import os
import resource
from pathlib import Path

import pytest
import safetensors.torch
import torch
from mmengine.runner import CheckpointLoader, load_checkpoint

import swinv2_mm.registry  # noqa: F401  (makes mmengine read safetensors)
from swinv2_mm.checkpoints.files import read_file, sha256, write_file

META = {'window_size': [8, [4, 8]], 'name': 'größer', 'ratio': 0.1, 'nothing': None}


def every_dtype():
    numbers = torch.tensor([[1 / 3, -0.0, torch.nan], [torch.inf, 6e-8, -1e4]], dtype=torch.float64)
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    return {str(kind): numbers.to(kind) for kind in kinds} | {'long': torch.arange(4), 'scale': torch.ones(2, 1, 1)}


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_files_come_back_bit_by_bit(suffix, tmp_path):
    """Bug: half precision is saved as float32, meta is lost, or a file is overwritten while others read from it."""
    path, weights = tmp_path / 'new' / f'weights.{suffix}', every_dtype()
    write_file(weights, path, META)
    content = read_file(path)
    assert content['meta'] == META and content['state_dict'].keys() == weights.keys()
    for key, tensor in content['state_dict'].items():
        assert tensor.dtype == weights[key].dtype and tensor.shape == weights[key].shape, key
        assert torch.equal(tensor.view(torch.uint8), weights[key].view(torch.uint8)), key
    write_file({key: torch.zeros_like(tensor) for key, tensor in weights.items()}, path, {})
    assert torch.equal(content['state_dict']['long'], weights['long'])  # although mapped from the former file
    assert not read_file(path)['state_dict']['long'].any()
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('reason', ['disk full', 'interrupted', 'meta'])
@pytest.mark.parametrize('existing', [False, True])
def test_a_failed_write_changes_nothing(suffix, reason, existing, tmp_path, monkeypatch):
    """Bug: half a file under the final name, the former file gone, or a temporary file left behind."""
    path, meta = tmp_path / f'weights.{suffix}', {}
    if existing:
        path.write_text('former')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if reason == 'interrupted':

        def stop(content, file, **_):
            Path(file).write_text('half')
            raise KeyboardInterrupt

        monkeypatch.setattr(torch, 'save', stop)
        monkeypatch.setattr(safetensors.torch, 'save_file', stop)
    elif reason == 'disk full':
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    elif suffix == 'safetensors':
        meta = {'a set': {1}}
    else:
        meta = {'a function': lambda: None}
    try:
        with pytest.raises({'disk full': OSError, 'interrupted': KeyboardInterrupt}.get(reason, Exception)):
            write_file({'weight': torch.zeros(10_000)}, path, meta)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [file.name for file in tmp_path.iterdir()] == ([path.name] if existing else [])
    assert not existing or path.read_text() == 'former'


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize(('mask', 'mode'), [(0o022, 0o644), (0o007, 0o660)])
def test_permissions_are_those_of_any_new_file(suffix, mask, mode, tmp_path):
    """Bug: a file that was written under a temporary name stays readable for its owner alone."""
    before = os.umask(mask)
    try:
        write_file({'weight': torch.ones(6)}, tmp_path / f'weights.{suffix}', {})
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert (tmp_path / f'weights.{suffix}').stat().st_mode & 0o777 == mode


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_mmengine_reads_what_is_written(suffix, tmp_path):
    """Bug: mmengine unpickles a safetensors file, or does not know the container of a .pth."""
    model, path = torch.nn.Linear(3, 2), str(tmp_path / f'weights.{suffix}')
    weights = {'weight': torch.rand(2, 3), 'bias': torch.rand(2)}
    write_file(weights, path, META)
    assert CheckpointLoader.load_checkpoint(path, map_location='cpu')['meta'] == META
    load_checkpoint(model, path, map_location='cpu', strict=True)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
