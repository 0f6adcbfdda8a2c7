"""The CPU runs ahead of the GPU: a steady step waits for no result, and an evaluation can be a CUDA graph.

Only a GPU can tell: elsewhere these tests are skipped, and benchmarks/gpu_counts.py counts operations on fake tensors.
"""

import pytest
import torch

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.kernels.gpu.usable import why_not_triton

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='a CPU has nothing to wait for: it needs a GPU'),
]


@pytest.fixture(params=['sdpa', 'triton', 'auto'])
def model(request):
    """SwinV2-T with windows of 8, warm for an image of this size."""
    if request.param == 'triton':
        reason = why_not_triton(torch.empty(1, 8, 8, 3, 1, 32, device='cuda'), (8, 8))
        if reason:
            pytest.skip(reason)
    return SwinTransformerV2('tiny', attn_backend=request.param).cuda()


@pytest.fixture
def waiting_is_an_error():
    """A function that switches it on."""
    yield lambda: torch.cuda.set_sync_debug_mode('error')
    torch.cuda.set_sync_debug_mode('default')


def image():
    return torch.rand(2, 3, 264, 360, device='cuda')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_a_steady_training_step_waits_for_nothing(dtype, model, waiting_is_an_error):
    """Forward, backward and AdamW, after two steps of this size. Bug: a result that Python reads stops the launches
    until the GPU is idle, in each block."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    x = image()

    def step():
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            maps = model(x)
        sum(one.float().square().mean() for one in maps).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    waiting_is_an_error()
    step()


@pytest.mark.parametrize('grad', [torch.inference_mode, torch.no_grad], ids=['inference_mode', 'no_grad'])
def test_an_evaluation_waits_for_nothing(grad, model, waiting_is_an_error):
    """Bug: weights are compared by value in each block, to see whether a kept bias is still right."""
    model.eval()
    x = image()
    with grad():
        model(x)
        waiting_is_an_error()
        model(x)


def test_an_evaluation_is_captured_as_a_cuda_graph(model):
    """Replayed on another image it gives that image's maps. Bug: a copy from the host or a wait inside, which CUDA
    refuses to capture, or a result that was computed at capture."""
    model.eval()
    x, other = image(), image()
    with torch.inference_mode():
        expected = [one.clone() for one in model(other)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            maps = model(x)
        x.copy_(other)
        graph.replay()
        torch.cuda.synchronize()
    for mine, right in zip(maps, expected, strict=True):
        assert (mine - right).abs().max() <= 1e-4 * right.abs().max()
