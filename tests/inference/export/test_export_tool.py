"""tools/export.py: a verified file, or an error that says why not and leaves nothing behind."""

import json
import sys

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from support import ROOT, run_process

from swinv2_mm.inference.export import exporting, verify
from swinv2_mm.inference.export.verify import session

pytest.importorskip('onnxscript', reason='what torch writes ONNX files with is not installed')
pytest.importorskip('onnxruntime', reason='what runs ONNX files is not installed')
CLIENT = ROOT / 'swinv2_mm' / 'inference' / 'export' / 'client.py'
SIZES = [
    *((32, 32), (33, 47), (64, 64), (64, 96), (75, 60), (96, 33), (97, 131), (100, 150), (128, 128), (129, 64)),
    *((160, 96), (161, 97), (192, 40), (200, 120), (211, 99), (224, 224), (256, 50), (257, 130), (300, 77), (320, 200)),
]


def pixels(H, W):
    return np.random.default_rng(H * W).integers(0, 256, (H, W, 3), dtype=np.uint8)


def predicted(model, rgb, scope):
    """What the framework itself predicts for a picture, read as BGR."""
    from mmseg.structures import SegDataSample

    H, W = rgb.shape[:2]
    sample = SegDataSample(metainfo=dict(ori_shape=(H, W), img_shape=(H, W), pad_shape=(H, W)))
    image = torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1].transpose(2, 0, 1)))
    with torch.no_grad(), DefaultScope.overwrite_default_scope(scope):
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0]


def test_a_segmentor_predicts_as_in_its_framework(trained_model, run_tool, tmp_path, capfd):
    """From the picture on: colours, scaling, padding, resizing and classes, at 20 sizes, also by a client that imports
    neither torch nor mmcv. Prevents: channels or a mean that are applied twice, or never."""
    config, checkpoint, model = trained_model('upernet')
    out = tmp_path / 'upernet.onnx'
    assert run_tool('export', config, checkpoint, out, '--logits') == 0
    assert '97 x 131: largest difference' in capfd.readouterr().err
    running = session(out)
    for size in SIZES:
        rgb = pixels(*size)
        expected = predicted(model, rgb, 'mmseg')
        images = rgb.astype(np.float32).transpose(2, 0, 1)[None]
        (logits,) = running.run(None, {'images': images})
        right = expected.seg_logits.data.numpy()
        assert np.abs(logits[0] - right).max() <= 1e-4 * np.abs(right).max()
    about = running.get_modelmeta().custom_metadata_map
    assert json.loads(about['classes']) == ['a', 'b', 'c', 'd']
    assert json.loads(about['windows']) == [[4, 4]] * 2
    assert about['channels'] == 'RGB' and about['task'] == 'segmentation'
    Image.fromarray(rgb).save(tmp_path / 'picture.png')
    blocked = 'import sys; sys.modules.update(dict.fromkeys(("torch", "mmcv", "mmengine", "swinv2_mm"))); '
    code = f'{blocked} import runpy; runpy.run_path({str(CLIENT)!r}, run_name="__main__")'
    done = run_process(sys.executable, '-c', code, out, 'picture.png', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    with Image.open(tmp_path / 'classes.png') as drawn:
        assert (np.asarray(drawn) == expected.pred_sem_seg.data[0].numpy()).mean() > 0.999
        assert drawn.getpalette()[:12] == [0, 0, 0, 9, 0, 0, 0, 9, 0, 0, 0, 9]


def test_openvino_reads_the_same_file(trained_model, run_tool, tmp_path):
    """At several sizes by one compiled model. Prevents: operators, or shapes, that only one runtime takes."""
    openvino = pytest.importorskip('openvino', reason='the other runtime is not installed')
    config, checkpoint, _ = trained_model('upernet')
    out = tmp_path / 'upernet.onnx'
    assert run_tool('export', config, checkpoint, out, '--part', 'backbone') == 0
    compiled = openvino.Core().compile_model(str(out), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    running = session(out)
    for size in SIZES[::4]:
        images = np.random.default_rng(0).standard_normal((2, 3, *size), dtype=np.float32)
        for mine, right in zip(compiled([images]).values(), running.run(None, {'images': images}), strict=True):
            assert np.abs(mine - right).max() <= 1e-4 * np.abs(right).max()


@pytest.mark.parametrize('kind', ['retinanet', pytest.param('atss', marks=pytest.mark.slow)])
def test_a_detector_gives_the_maps_of_its_head(kind, trained_model, run_tool, tmp_path):
    """The padding of a batch is in the graph. Prevents: maps of another size than the anchors, or in another order."""
    config, checkpoint, model = trained_model(kind)
    out = tmp_path / f'{kind}.onnx'
    assert run_tool('export', config, checkpoint, out) == 0
    running = session(out)
    rgb = pixels(70, 101)
    found = running.run(None, {'images': rgb.astype(np.float32).transpose(2, 0, 1)[None]})
    image = torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1].transpose(2, 0, 1)))
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmdet'):
        inputs = model.data_preprocessor(dict(inputs=[image], data_samples=None))['inputs']
        expected = [one for level in model(inputs, mode='tensor') for one in level]
    assert len(found) == len(expected) == len(running.get_outputs())
    for mine, right in zip(found, expected, strict=True):
        assert mine.shape == tuple(right.shape)
        assert np.abs(mine - right.numpy()).max() <= 1e-4 * right.abs().max()


@pytest.mark.slow
def test_half_precision(trained_model, run_tool, tmp_path, capfd):
    """Prevents: types that do not fit together, and images that overflow before they are scaled."""
    config, checkpoint, _ = trained_model('upernet')
    whole, half = tmp_path / 'whole.onnx', tmp_path / 'half.onnx'
    assert run_tool('export', config, checkpoint, whole) == run_tool('export', config, checkpoint, half, '--half') == 0
    assert half.stat().st_size < 0.7 * whole.stat().st_size
    images = pixels(97, 131).astype(np.float32).transpose(2, 0, 1)[None]
    (one,), (other,) = (session(path).run(None, {'images': images}) for path in (whole, half))
    assert (one == other).mean() > 0.95


@pytest.fixture
def wrong(trained_model, monkeypatch, tmp_path):
    """A command line that would work, and no time spent on tracing."""
    monkeypatch.setattr(exporting, 'write_graph', lambda *_: pytest.fail('it was traced'))
    config, checkpoint, _ = trained_model('upernet')
    return config, checkpoint, tmp_path / 'out.onnx'


def refused(run_tool, capfd, *arguments):
    capfd.readouterr()
    assert run_tool('export', *arguments) == 2
    return capfd.readouterr().err


def test_mistakes_are_told_before_the_work(wrong, run_tool, trained_model, capfd, monkeypatch, tmp_path):
    """Each by its argument. Prevents: a traceback, and minutes of work for nothing."""
    config, checkpoint, out = wrong
    assert 'ends in .onnx' in refused(run_tool, capfd, config, checkpoint, tmp_path / 'out.pth')
    (tmp_path / 'there.onnx').write_text('mine')
    assert '--force' in refused(run_tool, capfd, config, checkpoint, tmp_path / 'there.onnx')
    assert (tmp_path / 'there.onnx').read_text() == 'mine'
    (tmp_path / 'file').write_text('')
    assert 'is no folder' in refused(run_tool, capfd, config, checkpoint, tmp_path / 'file' / 'out.onnx')
    assert 'does not exist' in refused(run_tool, capfd, config, tmp_path / 'none.pth', out)
    detector, weights, _ = trained_model('maskrcnn')
    assert 'does not fit' in refused(run_tool, capfd, config, weights, out)
    assert '--half: MaskRCNN' in refused(run_tool, capfd, detector, weights, out, '--half')
    soft = ('--cfg-options', 'model.test_cfg.rcnn.nms.type=soft_nms')
    assert 'model.test_cfg.rcnn.nms={' in refused(run_tool, capfd, detector, weights, out, *soft)
    legacy = ('--cfg-options', 'model.roi_head.mask_roi_extractor.roi_layer.aligned=False')
    assert 'aligned=True' in refused(run_tool, capfd, detector, weights, out, *legacy)
    all_anchors = ('--cfg-options', 'model.test_cfg.rpn.nms_pre=-1')
    assert 'model.test_cfg.rpn.nms_pre must' in refused(run_tool, capfd, detector, weights, out, *all_anchors)
    double = ('--cfg-options', 'model.roi_head.type=DoubleHeadRoIHead', 'model.roi_head.reg_roi_scale_factor=1.3')
    assert 'model.roi_head is DoubleHeadRoIHead' in refused(run_tool, capfd, detector, weights, out, *double)
    other = tmp_path / 'other.py'
    other.write_text("default_scope = 'mmengine'\nmodel = dict(type='BaseDataPreprocessor')\n")
    torch.save(dict(weight=torch.zeros(1)), tmp_path / 'other.pth')
    assert 'the backbone of BaseDataPreprocessor is no' in refused(run_tool, capfd, other, tmp_path / 'other.pth', out)
    assert 'is not a segmentor' in refused(run_tool, capfd, detector, weights, out, '--logits')
    assert 'window_size=0' in refused(run_tool, capfd, config, checkpoint, out, '--window-size', '0')
    monkeypatch.setattr('swinv2_mm.inference.export.graph.VERSION', (2, 5))
    assert 'needs torch 2.9 or newer' in refused(run_tool, capfd, config, checkpoint, out)
    monkeypatch.setattr('swinv2_mm.inference.export.graph.find_spec', lambda name: None)
    assert 'pip install onnx onnxscript onnxruntime' in refused(run_tool, capfd, config, checkpoint, out)
    assert not out.exists()


def test_a_file_that_differs_is_not_kept(trained_model, run_tool, capfd, monkeypatch, tmp_path):
    """Prevents: a silent wrong result after the export."""
    config, checkpoint, _ = trained_model('upernet')
    monkeypatch.setattr(verify, 'SIZES', ((32, 32),))
    monkeypatch.setattr(exporting, 'write_graph', lambda *args: args[-1].write_bytes(b'a file'))
    monkeypatch.setattr(verify, 'differences', lambda *_: {(32, 32): float('nan')})
    before = set(tmp_path.iterdir())
    assert 'differs from PyTorch by nan' in refused(run_tool, capfd, config, checkpoint, tmp_path / 'out.onnx')
    assert set(tmp_path.iterdir()) == before
