"""The backbone as one ONNX file for images of all sizes: ONNX Runtime, OpenVINO and PyTorch compute the same."""

import pytest
import torch
from support.tiny_layers import assert_close

from swinv2_mm import SwinTransformerV2
from swinv2_mm.inference.export import graph
from swinv2_mm.inference.export.parts import BackbonePart
from swinv2_mm.inference.export.verify import session

pytest.importorskip('onnxscript', reason='what torch writes ONNX files with is not installed')
pytest.importorskip('onnxruntime', reason='what runs ONNX files is not installed')

# Odd, not square, smaller than a window in one or both directions, one window exactly, one row more than a window.
SIZES = [
    *((32, 32), (33, 32), (32, 65), (36, 44), (40, 40), (48, 48), (52, 60), (63, 97), (64, 64), (64, 200)),
    *((72, 33), (80, 128), (97, 97), (100, 150), (127, 129), (128, 32), (129, 36), (160, 96), (200, 333), (320, 61)),
]
NARROW = dict(embed_dims=16, depths=(2, 2), num_heads=(2, 4), out_indices=(0, 1), window_size=[4, [8, 6]])
TINY_8 = dict(window_size=8)
TINY_16 = dict(window_size=16, pretrained_window_sizes=8)
SMALL_STAGES = dict(embed_dims=24, depths=(2, 2, 18, 2), num_heads=(1, 2, 4, 8), window_size=[24, 12, 12, 6])
CASES = {
    'narrow': NARROW,
    'narrow, padding takes part': NARROW | dict(mask_padding=False),
    'narrow, balanced windows': NARROW | dict(window_fit='balanced', window_size=[7, 5], qkv_bias=False),
}
LONG_CASES = {
    'balanced windows, padding takes part': NARROW | dict(window_fit='balanced', mask_padding=False),
    'T, window 8': TINY_8,
    'T, window 16': TINY_16,
    'T, window 8, padding takes part': TINY_8 | dict(mask_padding=False),
    'T, window 16, padding takes part': TINY_16 | dict(mask_padding=False),
    'S with few channels, windows per stage': SMALL_STAGES,
    'G with few channels, extra norms': dict(
        arch='giant', embed_dims=16, depths=(2, 6, 2), num_heads=(1, 2, 4), out_indices=(0, 2), window_size=6
    ),
}
every_case = pytest.mark.parametrize(
    'options',
    [*CASES.values(), *(pytest.param(options, marks=pytest.mark.slow) for options in LONG_CASES.values())],
    ids=[*CASES, *LONG_CASES],
)


def images_of(size, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def write(path, model, half=False):
    part = BackbonePart(model)
    graph.write_graph(part.half() if half else part, graph.example(model), part.outputs, {}, path)
    return path


def run(path, images):
    return [torch.from_numpy(one) for one in session(path).run(None, {'images': images.numpy()})]


@every_case
def test_one_file_serves_all_sizes(options, randomize, tmp_path):
    """To 1e-4 of the largest value, in batches of one and two. Prevents: a plan, a mask, a shift or a window that
    belongs to the size of the trace; also a count of windows that torch.export took for a constant."""
    model = randomize(SwinTransformerV2(**options)).eval()
    running = session(write(tmp_path / 'backbone.onnx', model))
    for number, size in enumerate(SIZES):
        images = images_of(size, 1 + number % 2)
        with torch.no_grad():
            expected = model(images)
        found = [torch.from_numpy(one) for one in running.run(None, {'images': images.numpy()})]
        assert_close(found, expected, 1e-4)
