"""Tracing, exporting and compiling a backbone: what comes out computes the same, and nothing of it stays behind."""

import dataclasses
import functools
import gc
import importlib
import pkgutil

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from swinv2_mm import SwinTransformerV2, models
from swinv2_mm.models.cache import BoundedCache
from swinv2_mm.models.kernels import cpp

TINY = dict(embed_dims=32, depths=(2, 1), num_heads=(1, 2), out_indices=(0, 1), window_size=4, drop_path_rate=0.0)
pytestmark = pytest.mark.filterwarnings(
    'ignore:.*is deprecated',
    'ignore:You are using the legacy TorchScript-based ONNX export',
    'ignore::torch.jit.TracerWarning',
)


@pytest.fixture
def build(randomize):
    """A backbone in evaluation without values that hide anything, with the same ones each time."""
    return lambda **options: randomize(SwinTransformerV2(**TINY | options)).eval()


def picture(batch=1, height=36, width=44):
    """9 x 11 and 5 x 6 tokens by default: windows of 4 are shifted, and completed by padding."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(2))


def assert_close(found, expected, tolerance=1e-5):
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == right.shape
        assert (mine - right).abs().max() <= tolerance * right.abs().max()


# --- what is kept ----------------------------------------------------------------------------------------------------


def caches():
    """Every function of the model's modules that keeps results, and every dict of theirs, by name."""
    found = {}
    for info in pkgutil.walk_packages(models.__path__, f'{models.__name__}.'):
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # Triton is not everywhere
            continue
        for name, value in vars(module).items():
            keeps = isinstance(value, functools._lru_cache_wrapper) and value.__module__ == module.__name__
            keeps |= isinstance(value, BoundedCache)
            if keeps or (type(value) is dict and not name.startswith('__')):
                found[f'{module.__name__}.{name}'] = value
    return found


def clear_caches():
    for cache in caches().values():
        if hasattr(cache, 'cache_clear'):
            cache.cache_clear()


def tensors_in(value, seen=None):
    """All tensors below a value: in containers, data classes, and the results that an ``lru_cache`` keeps."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, functools._lru_cache_wrapper):
        for below in gc.get_referents(value):
            if not callable(below):
                yield from tensors_in(below, seen)
    elif isinstance(value, BoundedCache):
        yield from tensors_in(value.kept, seen)
    elif dataclasses.is_dataclass(value):
        yield from tensors_in(vars(value), seen)
    elif isinstance(value, dict):
        for below in (*value.keys(), *value.values()):
            yield from tensors_in(below, seen)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for below in value:
            yield from tensors_in(below, seen)


def is_plain(tensor, devices=('cpu',)):
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.device.type in devices
        and not tensor.is_inference()
        and not torch._is_functional_tensor(tensor)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def assert_nothing_is_left(*used):
    """Neither in caches of the process nor in the attributes of these models.

    Of a pass on the meta device its tables may be kept, for that device.
    """
    for name, cache in caches().items():
        for tensor in tensors_in(cache):
            assert is_plain(tensor, ('cpu', 'meta')) and tensor.grad_fn is None, name
    for model in used:
        for name, module in model.named_modules():
            own = {key: value for key, value in vars(module).items() if key != '_modules'}
            assert all(is_plain(tensor) for tensor in tensors_in(own)), name


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


# --- ways to export --------------------------------------------------------------------------------------------------
# Each takes a model in evaluation, and returns pairs of a function of an image and an image to try it with; none, where
# nothing comes out.


def trace(model):
    return [(torch.jit.trace(model, picture()), picture())]


def trace_without_gradients(model):
    with torch.no_grad():
        return [(torch.jit.trace(model, picture()), picture())]


def export_static(model, strict=False):
    return [(export(model, (picture(),), strict=strict).module(), picture())]


def export_auto(model, strict=False):
    shapes = {'x': {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}}
    exported = export(model, (picture(2),), dynamic_shapes=shapes, strict=strict).module()
    return [(exported, picture(2)), (exported, picture(3, 52, 60)), (exported, picture(2, 64, 40))]


def fake_inputs(model):
    """Weights and image are fake, the model is the one that is used otherwise."""
    mode = FakeTensorMode()
    fake = {name: mode.from_tensor(p) for name, p in (*model.named_parameters(), *model.named_buffers())}
    with mode:
        maps = torch.func.functional_call(model, fake, mode.from_tensor(picture()))
    assert [tuple(one.shape) for one in maps] == [(1, 32, 9, 11), (1, 64, 5, 6)]
    return []


def fake_model(model):
    """A model of fake weights, as tools that plan memory make one; torch's own initialisation cannot be faked."""
    mode, fake = FakeTensorMode(), SwinTransformerV2(**TINY).eval()
    for module in fake.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(mode.from_tensor(parameter.detach())))
    with mode:
        for _ in range(2):
            maps = fake(torch.rand(1, 3, 36, 44))
    assert [tuple(one.shape) for one in maps] == [(1, 32, 9, 11), (1, 64, 5, 6)]
    return []


def meta(model):
    with torch.device('meta'):
        maps = SwinTransformerV2(**TINY).eval()(torch.rand(1, 3, 36, 44))
    assert [(one.device.type, tuple(one.shape)) for one in maps] == [('meta', (1, 32, 9, 11)), ('meta', (1, 64, 5, 6))]
    return []


def onnx_file(model, path, **options):
    torch.onnx.export(model, (picture(),), path, input_names=['x'], **options)
    return path


def onnx_session(path):
    onnxruntime = pytest.importorskip('onnxruntime', reason='what runs ONNX files is not installed')
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda x: [torch.from_numpy(one) for one in session.run(None, {'x': x.numpy()})]


def onnx_legacy(model, folder):
    pytest.importorskip('onnx', reason='the format is not installed')
    path = onnx_file(model, str(folder / 'legacy.onnx'), dynamo=False, opset_version=17)
    return [(onnx_session(path), picture())]


def onnx_dynamo(model, folder):
    pytest.importorskip('onnxscript', reason='what torch writes ONNX files with is not installed')
    path = onnx_file(model, str(folder / 'dynamo.onnx'), dynamo=True, verbose=False)
    return [(onnx_session(path), picture())]


def functional(model):
    weights = dict(model.named_parameters())
    return [(lambda x: torch.func.functional_call(model, weights, (x,)), picture())]


def graph(model):
    return [(make_fx(model)(picture()), picture())]


def graph_without_gradients(model):
    with torch.no_grad():
        return [(make_fx(model)(picture()), picture())]


def graph_of_fake_tensors(model, mode='fake'):
    weights = {name: p.detach() for name, p in model.named_parameters()}
    made = make_fx(lambda weights, x: torch.func.functional_call(model, weights, (x,)), tracing_mode=mode)(
        weights, picture()
    )
    return [(lambda x: made(weights, x), picture())]


def graph_of_any_size(model):
    return graph_of_fake_tensors(model, 'symbolic')


def inference_mode(model):
    with torch.inference_mode():
        maps = model(picture())
    return [(lambda x: [one.clone() for one in maps], picture())]


def compiled(model):
    torch._dynamo.reset()
    function = torch.compile(model, backend='aot_eager')
    function(picture())
    return [(function, picture())]


def counted(model):
    with FlopCounterMode(display=False) as counter:
        model(picture())
    assert counter.get_total_flops() > 0
    return []


def export_strict(model):
    return export_static(model, strict=True)


def export_auto_strict(model):
    return export_auto(model, strict=True)


QUICK = [
    trace,
    trace_without_gradients,
    export_static,
    fake_inputs,
    fake_model,
    meta,
    onnx_legacy,
    functional,
    graph,
    graph_without_gradients,
    graph_of_fake_tensors,
    inference_mode,
    counted,
]
LONG = [export_strict, export_auto, onnx_dynamo, compiled]
LONGER = [export_auto_strict, graph_of_any_size]
ONE_STAGE = dict(depths=(2,), num_heads=(1,), out_indices=(0,))


def run(kind, model, folder):
    return kind(model, folder) if kind in (onnx_legacy, onnx_dynamo) else kind(model)


def features_and_gradients(model):
    maps = model(picture())
    grads = torch.autograd.grad(sum(one.square().mean() for one in maps), list(model.parameters()))
    with torch.no_grad():
        first, second = model(picture()), model(picture())
    return [one.detach() for one in (*maps, *grads, *first, *second)]


def assert_identical(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


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
                    assert_close(function(x), expected[:2])
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
            assert_close(function(picture()), build()(picture()))
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
