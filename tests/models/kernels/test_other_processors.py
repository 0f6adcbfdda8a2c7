"""The C++ compiled for processors that are not at hand, and run by an emulator, against torch's operations here."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.window_formula import on_windows, problem

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / 'swinv2_mm/models/kernels/csrc'
# For each a compiler, what it is told, and what runs its programs.
PROCESSORS = {
    'Arm NEON': ('aarch64-linux-gnu-g++', [], ['qemu-aarch64', '-L', '/usr/aarch64-linux-gnu']),
    'no vectors but those of 1999': ('g++', ['-mno-avx'], []),  # float16 in software
}


@pytest.fixture(scope='module', params=PROCESSORS)
def driver(request, tmp_path_factory):
    """A function that runs the driver on an input file, giving the output's bytes."""
    compiler, flags, runner = PROCESSORS[request.param]
    for program in (compiler, *runner[:1]):
        if shutil.which(program) is None:
            pytest.skip(f'{program} is not installed: Debian has g++-aarch64-linux-gnu and qemu-user')
    if runner == [] and 'x86' not in subprocess.run([compiler, '-dumpmachine'], capture_output=True, text=True).stdout:
        pytest.skip('this machine runs no programs for x86')
    folder = tmp_path_factory.mktemp('driver')
    subprocess.run(
        [
            compiler,
            '-std=c++17',
            '-O2',
            '-ffp-contract=fast',
            '-Wno-psabi',
            *flags,
            '-o',
            folder / 'driver',
            HERE / 'kernel_driver.cpp',
            *SOURCES.glob('*.cpp'),
        ],
        check=True,
    )

    def run(given: bytes) -> bytes:
        (folder / 'in').write_bytes(given)
        subprocess.run([*runner, folder / 'driver', folder / 'in', folder / 'out'], check=True)
        return (folder / 'out').read_bytes()

    return run


@pytest.mark.slow
@pytest.mark.parametrize('dtype, bound', [(torch.float32, 4e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize('size, window, d', [((9, 11), (4, 4), 32), ((7, 6), (3, 5), 24), ((17, 9), (9, 8), 44)])
def test_other_processors_compute_the_same(driver, size, window, d, dtype, bound):
    """Prevents: kernels that are right in wide vectors only, or by this machine's instructions."""
    B, nH = 2, 2
    qkv, bias, scale, table = (t.float() for t in problem(B=B, size=size, window=window, nH=nH, d=d))
    qkv, grad = qkv.to(dtype), torch.randn(B, *size, nH, d).to(dtype)
    shift = [side // 2 if length > side else 0 for side, length in zip(window, size, strict=True)]
    code = [torch.float32, torch.bfloat16, torch.float16].index(dtype)
    head = torch.tensor([code, B, *size, nH, d, *window, *shift])
    given = [head, qkv, grad, bias, scale, table]
    found = driver(b''.join(bytes(t.contiguous().view(torch.uint8).numpy()) for t in given))

    exact = [t.double().requires_grad_() for t in (qkv, bias, scale, table)]
    out = on_windows(*exact, True)
    qkv_grad, *others = torch.autograd.grad(out, exact, grad.double())
    # What follows reads the output as it was rounded.
    maps, numel = [], grad.numel()
    own = torch.frombuffer(bytearray(found), dtype=dtype, count=numel).view(B, *size, nH * d).double()
    hidden = own.clone().requires_grad_()
    active = F.gelu(hidden)
    (hidden_grad,) = torch.autograd.grad(active, hidden, grad.double().flatten(3))
    branch = grad.double().flatten(3).requires_grad_()
    C = nH * d
    norm = [t.double().requires_grad_() for t in (bias[:C], bias[2 * C :])]
    added = F.layer_norm(branch, (C,), *norm)
    branch_grad, *norm_grads = torch.autograd.grad(added, [branch, *norm], own)
    maps = [out, qkv_grad, hidden_grad, active, own + added, branch_grad]
    for at, expected in [*((dtype, t) for t in maps), *((torch.float32, t) for t in (*others, *norm_grads))]:
        mine = torch.frombuffer(bytearray(found), dtype=at, count=expected.numel()).view(expected.shape)
        found = found[mine.nbytes :]
        assert (mine.double() - expected).abs().max() <= bound * max(expected.abs().max(), 1)
    assert found == b''
