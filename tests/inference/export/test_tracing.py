"""TorchScript for images of any size."""

import sys

import pytest
import torch
from support import run_process

from swinv2_mm import SwinTransformerV2
from swinv2_mm.compat import COMPILES
from swinv2_mm.inference.export.tracing import trace

pytestmark = pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning')
if not COMPILES:
    pytest.skip('traces of older torch keep no operation of ours', allow_module_level=True)
SIZES = [(1, 1), (3, 200), (32, 32), (35, 35), (64, 96), (97, 131), (128, 128), (203, 77), (160, 33), (256, 224)]
KINDS = {
    'masked': dict(window_size=8),
    'zeros take part': dict(window_size=[(7, 4), 8, 8], mask_padding=False),
    'balanced': dict(window_size=8, window_fit='balanced'),
    'balanced, zeros take part': dict(window_size=8, window_fit='balanced', mask_padding=False),
}


@pytest.mark.parametrize('kind', KINDS.values(), ids=KINDS)
def test_one_trace_computes_what_the_model_does_at_all_sizes(kind, randomize, tmp_path):
    """Also after saving and loading, in batches. Bug: a window, a padding or a count of the size of the trace."""
    torch.manual_seed(0)
    arch = dict(embed_dims=16, depths=(2, 2, 1), num_heads=(1, 2, 4), out_indices=(0, 1, 2))
    model = randomize(SwinTransformerV2(**arch, **kind)).eval()
    file = str(tmp_path / 'backbone.pt')
    trace(model).save(file)
    traced = torch.jit.load(file)
    for number, size in enumerate(SIZES):
        images = torch.rand(1 + number % 3, 3, *size)
        with torch.no_grad():
            for mine, right in zip(traced(images), model(images), strict=True):
                assert mine.shape == right.shape
                assert (mine - right).abs().max() <= 1e-5 * right.abs().max()


def test_a_process_that_imports_the_module_loads_it(randomize, tmp_path):
    """Bug: an operation that only the process of the trace knows."""
    model = randomize(SwinTransformerV2(embed_dims=16, depths=(2,), num_heads=(1,), out_indices=(0,))).eval()
    trace(model).save(str(tmp_path / 'backbone.pt'))
    code = (
        'import torch, swinv2_mm.inference.export.tracing; '
        'print(*torch.jit.load("backbone.pt")(torch.rand(1, 3, 50, 41))[0].shape)'
    )
    done = run_process(sys.executable, '-W', 'ignore', '-c', code, cwd=tmp_path)
    assert done.stdout.split() == ['1', '16', '13', '11'], done.stderr
