"""tools/environment/cuda.py, with stand-ins for nvidia-smi, nvcc and the package index."""

import os
from types import SimpleNamespace

import pytest
from environment import cuda

H100 = 'NVIDIA H100 80GB HBM3, 9.0, 580.95.05'


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Write a program in front of PATH, or in another folder."""
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path / 'path'), prepend=os.pathsep)

    def write(name, script, folder=tmp_path / 'path'):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'#!/bin/sh\n{script}\n')
        (folder / name).chmod(0o755)

    return write


def nvcc(version, status=0):
    """A compiler that says its version, and compiles, or not."""
    return f"""
if [ "$1" = --version ]; then echo "Cuda compilation tools, release {version}, V{version}.88"; exit 0; fi
echo "this wrapper finds no compiler"; exit {status}"""


@pytest.mark.parametrize(
    ('said', 'told'),
    [
        ('NVIDIA A100, 8.0, 535.104.05', r'driver of the NVIDIA A100 has version 535\.104, .* needs 580\.65 or newer'),
        ('Tesla V100, 7.0, 580.95.05', r'Tesla V100 has compute capability 7\.0, .* 7\.5 or higher'),
        (H100 + '\nTesla V100, 7.0, 580.95.05', 'Tesla V100 has compute capability'),
    ],
)
def test_a_gpu_that_torch_cannot_use_stops_the_setup(said, told, program):
    """The message has a build that fits. Bug: mmcv is compiled without CUDA, and training runs on the CPU."""
    program('nvidia-smi', f'echo "{said}"')
    with pytest.raises(SystemExit, match=told) as error:
        cuda.check_gpus('13.0', '2.13.0+cu130')
    assert 'UV_TORCH_BACKEND=' in str(error.value) and 'CUDA_VISIBLE_DEVICES= make setup' in str(error.value)


def test_a_gpu_that_fits_and_a_torch_without_cuda_pass(program, monkeypatch):
    """Bug: the setup stops on a machine where it would work, or that wants the CPU."""
    program('nvidia-smi', f'echo "{H100}"')
    cuda.check_gpus('13.0', '2.13.0+cu130')
    program('nvidia-smi', 'echo "NVIDIA A100, 8.0, 535.104.05"')
    cuda.check_gpus('', '2.13.0+cpu')
    cuda.check_gpus('12.6', '2.9.0+cu126')
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    cuda.check_gpus('13.0', '2.13.0+cu130')
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    program('nvidia-smi', 'echo "NVIDIA-SMI has failed because it could not communicate"; exit 9')
    cuda.check_gpus('13.0', '2.13.0+cu130')


class Index:
    """Stands in for uv: its wheel of the toolkit has an nvcc, and a library with its version in the name."""

    def __init__(self, folder, program, script):
        self.python, self.program, self.script, self.asked = folder / 'bin' / 'python', program, script, []
        self.home = folder / 'lib' / 'python3.11' / 'site-packages' / 'nvidia' / 'cu13'

    def install(self, *packages):
        self.asked += packages
        self.program('nvcc', self.script, self.home / 'bin')
        (self.home / 'lib').mkdir(exist_ok=True)
        (self.home / 'lib' / 'libcudart.so.13').write_bytes(b'')


@pytest.mark.parametrize('own', [None, nvcc('12.4'), nvcc('13.0', status=1), 'exit 0'])
def test_nvcc_comes_from_the_index_where_none_fits(own, program, tmp_path):
    """With torch, so that its own pins hold, and with the name that linkers look for.

    Bug: "CUDA_HOME is not set" after gigabytes of downloads; a wrapper that is called nvcc passes, and the build fails
    after minutes; "cannot find -lcudart" at its end.
    """
    if own is not None:
        program('nvcc', own, tmp_path / 'cuda' / 'bin')
    uv = Index(tmp_path / 'venv', program, nvcc('13.0'))
    assert cuda.toolkit(str(tmp_path / 'cuda') if own else '', '13.0', uv) == str(uv.home)
    assert uv.asked == ['torch', 'cuda-toolkit[nvcc,cccl]==13.0.*']
    assert os.readlink(uv.home / 'lib' / 'libcudart.so') == 'libcudart.so.13'
    cuda.toolkit('', '13.0', uv)  # once more, as after an interruption


def test_a_toolkit_that_compiles_is_taken(program, tmp_path):
    """Of another minor version, too. Bug: 100 MB are downloaded beside a toolkit that works."""
    program('nvcc', nvcc('13.1'), tmp_path / 'cuda' / 'bin')
    assert cuda.toolkit(str(tmp_path / 'cuda'), '13.0', SimpleNamespace()) == str(tmp_path / 'cuda')


def test_no_nvcc_for_cuda_12_is_told_before_the_build(program, tmp_path):
    """PyPI has none. Bug: the build raises "CUDA_HOME is not set" at the end of a traceback."""
    with pytest.raises(SystemExit, match=r'there is no nvcc. Install the CUDA 12\.6 toolkit') as error:
        cuda.toolkit('', '12.6', SimpleNamespace())
    assert 'CUDA_VISIBLE_DEVICES= make setup' in str(error.value)
    with pytest.raises(SystemExit, match='this wrapper finds no compiler'):
        cuda.toolkit('', '13.0', Index(tmp_path, program, nvcc('13.0', status=1)))


def test_forced_without_a_gpu_it_is_compiled_for_all(monkeypatch):
    """Bug: FORCE_CUDA=1 without a list of architectures ends in an IndexError of torch's build."""
    from environment import mmcv

    said = 'PROBE["2.13.0+cu130", "13.0", "default", ""]'
    monkeypatch.setattr(mmcv.machine, 'ask', lambda command: (0, said))
    assert mmcv.probe_torch('python').archs == cuda.ARCHITECTURES['13']
