"""The compiled backbone: one graph, for images of any size, with the values and gradients of the one that is not."""

import shutil

import pytest
import torch
from support.versions import needs_compiler
from torch._dynamo.utils import counters

from swinv2_mm import SwinTransformerV2
from swinv2_mm.models.kernels import attention_op, linear

pytestmark = needs_compiler
TINY = dict(embed_dims=16, depths=(2, 1), num_heads=(2, 4), out_indices=(0, 1), window_size=4, drop_path_rate=0.0)
# Square first, as a benchmark would; fitting windows or not, wide, high, and smaller than a window of the last stage.
SIZES = [(64, 64), (64, 96), (96, 64), (33, 47), (40, 20), (100, 52), (61, 61), (96, 96), (20, 80), (128, 36)]
# The first size, and any other: torch takes two sides that are equal in the first for one number.
GRAPHS = 2


class Counting:
    """A backend that counts the graphs that it is given, and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def maps_and_gradients(model, x):
    maps = model(x)
    return maps, torch.autograd.grad(sum(m.square().mean() for m in maps), list(model.parameters()))


ONE_STAGE = dict(depths=(2,), num_heads=(2,), out_indices=(0,))


@pytest.mark.parametrize(
    ('training', 'options'),
    [
        (True, {}),
        pytest.param(False, {}, marks=pytest.mark.slow),
        pytest.param(True, dict(mask_padding=False, **ONE_STAGE), marks=pytest.mark.slow),
        pytest.param(False, dict(window_fit='balanced', window_size=7, **ONE_STAGE), marks=pytest.mark.slow),
        pytest.param(True, dict(with_cp=True, drop_path_rate=0.3, **ONE_STAGE), marks=pytest.mark.slow),
    ],
    ids=['training', 'evaluation', 'padding takes part', 'balanced windows', 'recomputed'],
)
def test_ten_sizes_need_two_graphs(training, options, randomize):
    """Without a break. Prevents: an image size baked into the graph by the plan of its windows, by padding that one
    size needs and another does not, or by a window that is larger than the map; torch gives up after eight graphs, and
    computes without compiling.
    """
    backend = Counting()
    model = randomize(SwinTransformerV2(**TINY | options)).train(training)
    compiled = torch.compile(model, backend=backend, dynamic=True, fullgraph=True)
    for size in SIZES:
        with torch.set_grad_enabled(training):
            compiled(torch.rand(2, 3, *size))
    assert 1 <= backend.graphs <= GRAPHS
    assert not counters['graph_break']


@pytest.mark.parametrize(
    'options',
    [
        {},
        pytest.param(dict(mask_padding=False), marks=pytest.mark.slow),
        pytest.param(dict(attn_chunk=2, with_cp=True), marks=pytest.mark.slow),
    ],
)
def test_values_and_gradients_are_those_of_the_model(options, randomize):
    """To 1e-5, at sizes that the graph was not made from. Prevents: a gradient of padding, or a bias of other offsets
    where the window is larger than the map."""
    model = randomize(SwinTransformerV2(**TINY | options))
    expected = randomize(SwinTransformerV2(**TINY | options))
    model.compile(backend='aot_eager', dynamic=True)
    for size in ((64, 96), (40, 20)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(maps_and_gradients(model, x), maps_and_gradients(expected, x), rtol=1e-5, atol=1e-5)


def test_dropout_of_probabilities_stays(randomize):
    """Outside of the graph. Prevents: a graph without it, since the operation has none."""
    model = randomize(SwinTransformerV2(**TINY | dict(depths=(1, 1), attn_drop_rate=0.5)))
    compiled = torch.compile(model, backend='eager', dynamic=True)
    x = torch.rand(1, 3, 40, 48)
    assert not torch.equal(compiled(x)[0], compiled(x)[0])
    torch.testing.assert_close(compiled.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_weights_and_window_may_change(randomize):
    """Prevents: an old position bias, or the trained window's, in a graph that goes on to be used."""
    model, other = randomize(SwinTransformerV2(**TINY)).eval(), randomize(SwinTransformerV2(**TINY), seed=1).eval()
    model.compile(backend='aot_eager', dynamic=True)
    x = torch.rand(1, 3, 40, 48)
    with torch.no_grad():
        model(x)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.data.copy_(theirs.data)
        torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)
        model.set_window_size(5)
        other.set_window_size(5)
        torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_autocast_needs_one_graph(dtype, randomize):
    """One graph under autocast. Prevents: a fake result of another type than the real one."""
    model = randomize(SwinTransformerV2(**TINY))
    exact = model(x := torch.rand(1, 3, 40, 48))
    compiled = torch.compile(model, backend='aot_eager', dynamic=True, fullgraph=True)
    with torch.autocast('cpu', dtype):
        maps = compiled(x)
    sum(m.float().square().mean() for m in maps).backward()
    for mine, right in zip(maps, exact, strict=True):
        assert (mine.float() - right).abs().mean() < 0.1 * right.abs().mean()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_operation_is_what_torch_expects(randomize):
    """Shapes, strides and types announced are those computed; gradients by finite differences. Prevents: a compiler
    that plans memory for another tensor."""
    qkv = torch.randn(2, 6, 8, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    scale = (torch.rand(2, 1, 1, dtype=torch.float64) * 5).requires_grad_()
    table = torch.randn(2, 9, 11, dtype=torch.float64, requires_grad=True)  # of a window of 5 x 6
    given = (qkv, scale, table, [5, 7], [3, 4], True, None, 'auto')  # 5 x 7 of 6 x 8 are wanted
    torch.library.opcheck(attention_op._attention, given)
    function = lambda *tensors: attention_op._attention(*tensors, *given[3:])  # noqa: E731
    assert torch.autograd.gradcheck(function, given[:3], fast_mode=True)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_layers_are_what_torch_expects(dtype):
    """As above, for linear layers and the MLP. Prevents: rows that lie apart where they were announced together, and
    a gradient that nobody asked for in the place of none."""
    tokens, w1, b1, w2, b2 = (torch.randn(*shape, dtype=dtype) for shape in ((50, 8), (24, 8), (24,), (8, 24), (8,)))
    for given in ((tokens, w1, b1), (tokens, w1, None), (tokens, w1.clone().requires_grad_(), b1)):
        torch.library.opcheck(linear._linear_operation, given, rtol=0.02, atol=0.02)
    torch.library.opcheck(linear._mlp_operation, (tokens, w1, b1, w2, b2))


def test_a_compiler_is_left_no_product(randomize):
    """But for the patch embedding's and the position bias'. Prevents: products handed to a library that is half as
    fast, once --compile is given."""
    called = []

    def backend(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == 'call_function')
        return graph

    model = randomize(SwinTransformerV2(**TINY)).eval()
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            torch.compile(model, backend=backend, dynamic=True, fullgraph=True)(torch.rand(1, 3, 40, 48))
    blocks = sum(TINY['depths'])
    linears = sum('swinv2_mm.linear' in name for name in called)
    assert linears == 2 * (2 * blocks + 1) + 2 * blocks  # qkv, proj; merging; in training fc1 and fc2
    assert sum('swinv2_mm.mlp' in name for name in called) == blocks
    assert sum('linear' in name and 'swinv2_mm' not in name for name in called) == 2 * 2 * blocks  # cpb_mlp


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='inductor needs a C++ compiler')
def test_inductor_computes_what_the_model_does(randomize):
    """The real compiler, one block. Prevents: a graph that only pretended backends take."""
    options = dict(embed_dims=8, depths=(1,), num_heads=(1,), out_indices=(0,), window_size=2, drop_path_rate=0.0)
    model, expected = (randomize(SwinTransformerV2(**options)) for _ in range(2))
    model.compile(dynamic=True)
    for size in ((16, 24), (20, 12)):
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(maps_and_gradients(model, x), maps_and_gradients(expected, x), rtol=1e-5, atol=1e-5)
