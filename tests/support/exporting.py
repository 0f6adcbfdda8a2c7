"""All ways to trace, export or compile a backbone.

Each takes a model in evaluation, and returns pairs of a function of an image and an image to try it with; none, where
nothing comes out. Those of an ONNX file take a folder, too.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from support.tiny_layers import TINY, picture
from swinv2_mm import SwinTransformerV2


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
