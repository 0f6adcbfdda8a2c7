"""Tracing, exporting and compiling a backbone: what comes out computes the same, and nothing of it stays behind."""

import functools

import pytest
import torch
from support.exporting import (
    LONG,
    LONGER,
    ONE_STAGE,
    QUICK,
    compiled,
    export_static,
    export_strict,
    onnx_dynamo,
    onnx_file,
    onnx_legacy,
    onnx_session,
    run,
    trace,
    trace_without_gradients,
)
from support.kept_tensors import assert_nothing_is_left, caches, clear_caches, is_plain, tensors_in
from support.tiny_layers import assert_close, assert_identical, picture
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import export

from swinv2_mm.models.kernels import cpp

pytestmark = pytest.mark.filterwarnings(
    'ignore:.*is deprecated',
    'ignore:You are using the legacy TorchScript-based ONNX export',
    'ignore::torch.jit.TracerWarning',
)


@pytest.fixture
def build(build):
    """A backbone in evaluation."""
    return lambda **options: build(**options).eval()


def test_the_search_finds_what_is_kept(build, monkeypatch):
    """Prevents: a search that finds nothing, and so nothing wrong."""
    monkeypatch.setattr(cpp, 'library', lambda: None)  # which needs no layouts
    clear_caches()
    assert not any(list(tensors_in(cache)) for cache in caches().values())
    with torch.no_grad():
        model = build()
        model(picture())
    assert sum(len(list(tensors_in(cache))) > 0 for cache in caches().values()) >= 2  # coordinates and layouts
    assert any(list(tensors_in(vars(module).get('_kept_bias'))) for module in model.modules())

    @functools.lru_cache(maxsize=4)
    def kept(size):
        with FakeTensorMode():
            return {'x': (torch.ones(size),)}

    kept(3)
    assert not any(map(is_plain, tensors_in(kept)))
    with torch.inference_mode():
        assert not is_plain(torch.ones(1))
    assert not is_plain(torch.ones(1, device='meta'))


def features_and_gradients(model):
    maps = model(picture())
    grads = torch.autograd.grad(sum(one.square().mean() for one in maps), list(model.parameters()))
    with torch.no_grad():
        first, second = model(picture()), model(picture())
    return [one.detach() for one in (*maps, *grads, *first, *second)]


def case(kind, warm, *marks):
    return pytest.param(kind, warm, id=f'{kind.__name__}-{"warm" if warm else "cold"}', marks=marks)


@pytest.mark.parametrize(
    ('kind', 'warm'),
    [
        *(case(kind, warm) for kind in QUICK for warm in (False, True)),
        *(case(kind, False) for kind in LONG),
        *(case(kind, False, pytest.mark.slow) for kind in LONGER),
    ],
)
def test_what_comes_out_is_the_model_and_nothing_stays(kind, warm, build, tmp_path):
    """An export of any kind, first in the process and after others, computes what the model does. Before and after it a
    model of the same shapes has the same features and gradients, bit by bit. Prevents: fake, traced or inference
    tensors in a cache that all models share, which fail or compute something else at the next call."""
    clear_caches()
    if kind in (export_strict, onnx_dynamo, compiled):  # which take seconds per block
        build = functools.partial(build, **ONE_STAGE)
    untouched, expected = build(), features_and_gradients(build())
    others = {x: build()(x) for x in (picture(2), picture(3, 52, 60), picture(2, 64, 40))}
    if warm:
        assert_identical(features_and_gradients(untouched), expected)
    else:
        clear_caches()
    model = build()
    if warm:
        with torch.no_grad():
            model(picture())  # its position bias is kept
    results = run(kind, model, tmp_path)
    assert_nothing_is_left(model, untouched)
    assert_identical(features_and_gradients(untouched), expected)
    tolerance = 2e-6 if kind in (trace, trace_without_gradients) else 1e-5
    with torch.no_grad():
        for function, x in results:
            right = next((maps for other, maps in others.items() if torch.equal(other, x)), expected)
            right = right[: len(model.out_indices)]
            assert_close(function(x), right, tolerance)
    assert not model.training
    assert_identical(features_and_gradients(model), expected)  # and the model itself is as it was
    assert_nothing_is_left(model, untouched)


@pytest.mark.parametrize('reverse', [False, True], ids=['forth', 'back'])
def test_exports_one_after_the_other(reverse, build, tmp_path):
    """All quick kinds on one model, in two orders, then a step of training. Prevents: an export that the next one, or
    a training, trips over."""
    model, expected = build(), features_and_gradients(build())
    clear_caches()
    failed = []
    for kind in reversed(QUICK) if reverse else QUICK:
        try:
            for function, x in run(kind, model, tmp_path):
                with torch.no_grad():
                    assert_close(function(x), expected[:2], 1e-5)
        except Exception as error:  # each has a test of its own, too
            failed.append(f'{kind.__name__}: {type(error).__name__}')
        assert_nothing_is_left(model)
        assert_identical(features_and_gradients(model), expected)
    model.train()
    sum(one.square().mean() for one in model(picture())).backward()
    assert_identical([p.grad for p in model.parameters()], expected[2 : 2 + len(list(model.parameters()))])
    assert not failed


def test_a_fresh_model_may_be_traced_and_exported_twice(build):
    """As for deployment. Prevents: a cache that a tracer's check, which runs the model again, takes for
    another computation; and a second export that finds what the first one left."""
    clear_caches()
    model = build()
    traced = torch.jit.trace(model, picture())
    first, second = (export(model, (picture(),), strict=False).module() for _ in range(2))
    again = torch.jit.trace(model, picture())
    with torch.no_grad():
        for function in (traced, first, second, again):
            assert_close(function(picture()), build()(picture()), 1e-5)
    assert_nothing_is_left(model)


@pytest.mark.parametrize(
    'options',
    [
        dict(num_heads=(4,)),
        dict(mask_padding=False),
        dict(window_fit='balanced', window_size=7),
        dict(attn_chunk=2),
        dict(with_cp=True),
        dict(qkv_bias=False),
        dict(frozen_stages=1),
        dict(window_size=16),
        dict(drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.3),
    ],
    ids=lambda options: '-'.join(options),
)
@pytest.mark.parametrize(
    'kind', [trace, onnx_legacy, pytest.param(export_static, marks=pytest.mark.slow)], ids=lambda kind: kind.__name__
)
def test_every_option_can_be_exported(kind, options, build, tmp_path):
    """Prevents: a branch that only the default options do not take."""
    clear_caches()
    options = ONE_STAGE | options
    model = build(**options)
    results = run(kind, model, tmp_path)
    assert_nothing_is_left(model)
    with torch.no_grad():
        expected = build(**options)(picture())
        for function, x in results:
            assert_close(function(x), expected, 2e-5)


@pytest.mark.parametrize('training', [False, True], ids=['in evaluation', 'in training'])
def test_onnx_drops_nothing(training, build, tmp_path):
    """torch's older exporter switches a model to evaluation and back. Prevents: a file with dropout in it, since a
    layer kept its mode, or a model that is left in the wrong one."""
    onnx = pytest.importorskip('onnx', reason='the format is not installed')
    model = build(drop_rate=0.3, attn_drop_rate=0.3, drop_path_rate=0.3).train(training)
    path = onnx_file(model, str(tmp_path / 'model.onnx'), dynamo=False, opset_version=17)
    nodes = {node.op_type for node in onnx.load(path).graph.node}
    assert 'MatMul' in nodes and not {
        name for name in nodes if 'Dropout' in name or 'Random' in name or 'Bernoulli' in name
    }
    with torch.no_grad():
        assert_close(onnx_session(path)(picture()), build()(picture()), 2e-5)
    assert all(module.training == training for module in model.modules())
