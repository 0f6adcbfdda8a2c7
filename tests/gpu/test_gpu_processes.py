"""Two processes with DDP: over nccl if there are two GPUs, over gloo without any."""

import sys

import pytest
import torch
from support import run_process

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

PROGRAM = """
import os
import torch
from torch import distributed
from swinv2_mm import SwinTransformerV2

rank, gpu = int(os.environ['RANK']), torch.cuda.is_available()
device = torch.device('cuda', rank) if gpu else torch.device('cpu')
if gpu:
    torch.cuda.set_device(device)
distributed.init_process_group('nccl' if gpu else 'gloo')
torch.manual_seed(0)
sizes = dict(embed_dims=32, depths=(2, 1), num_heads=(1, 2), out_indices=(0, 1), window_size=4, drop_path_rate=0.0)
model = SwinTransformerV2(**sizes).to(device)
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
images = torch.rand(2, 3, 36, 44).to(device)
loss = lambda run, images: sum(one.sin().square().mean() for one in run(images))
expected = torch.autograd.grad(loss(model, images), list(model.parameters()))
wrapped = torch.nn.parallel.DistributedDataParallel(model)  # which has to live until the gradients are there
loss(wrapped, images[rank : rank + 1]).backward()
largest = max(right.abs().max() for right in expected)
for (name, parameter), right in zip(model.named_parameters(), expected, strict=True):
    error = (parameter.grad - right).abs().max() / largest
    assert error <= 1e-4, f'{name}: {error:.1e}'
distributed.destroy_process_group()
"""


def test_two_processes_average_the_gradients_of_one_with_both_images(tmp_path):
    """Bug: a parameter that one process does not use, or an operation that nccl's buckets never see."""
    if torch.cuda.device_count() == 1:
        pytest.skip('there is one GPU: nccl needs two')
    file = tmp_path / 'program.py'
    file.write_text(PROGRAM)
    launch = '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'
    result = run_process(sys.executable, *launch, file)
    assert result.returncode == 0, result.stderr[-3000:]
