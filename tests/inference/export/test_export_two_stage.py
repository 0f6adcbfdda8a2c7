"""Faster and Mask R-CNN as ONNX files: the detections of MMDetection, for images of all sizes."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from PIL import Image
from support import ROOT, run_process

from swinv2_mm.inference.export.client import paste
from swinv2_mm.inference.export.verify import difference_of_detections, session

pytest.importorskip('onnxscript', reason='what torch writes ONNX files with is not installed')
pytest.importorskip('onnxruntime', reason='what runs ONNX files is not installed')
CLIENT = ROOT / 'swinv2_mm' / 'inference' / 'export' / 'client.py'
# Fewer anchors than nms_pre and several times as many; sides that are multiples of 32 and not.
SIZES = [
    *((32, 32), (97, 131), (224, 256), (300, 77)),
    *((33, 47), (64, 64), (64, 96), (75, 60), (96, 33), (100, 150), (128, 128), (129, 64)),
    *((160, 96), (161, 97), (192, 40), (200, 120), (211, 99), (256, 50), (257, 130), (320, 200)),
]


def spots(H, W):
    """Pixels ``(H, W, 3)`` in RGB."""
    coarse = torch.rand(1, 3, H // 8 + 1, W // 8 + 1, generator=torch.Generator().manual_seed(H * W)) * 255
    return F.interpolate(coarse, size=(H, W), mode='bicubic')[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()


def predicted(model, rgb):
    """What MMDetection itself finds in a picture, read as BGR."""
    from mmdet.structures import DetDataSample

    H, W = rgb.shape[:2]
    sample = DetDataSample(metainfo=dict(ori_shape=(H, W), img_shape=(H, W), scale_factor=(1.0, 1.0)))
    image = torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1].transpose(2, 0, 1)))
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmdet'):
        return model.test_step(dict(inputs=[image], data_samples=[sample]))[0].pred_instances


def agree(found, expected, size):
    """Whether each detection has one of the same class, 0.1 pixels and 1 % of the mask's pixels away at most."""
    boxes, scores, labels, *masks = found
    assert len(boxes) == len(expected)
    free = set(range(len(boxes)))
    for i in range(len(expected)):
        distance = np.abs(boxes - expected.bboxes[i].numpy()).max(1) + 1e3 * (labels != int(expected.labels[i]))
        j = min(free, key=distance.__getitem__)
        free.remove(j)
        assert distance[j] <= 0.1 and abs(scores[j] - float(expected.scores[i])) <= 1e-4
        if masks:
            mine, right = paste(masks[0][j], boxes[j], *size), expected.masks[i].numpy()
            assert (mine != right).sum() <= 0.01 * max(right.sum(), 100)


@pytest.mark.parametrize(
    'kind', ['maskrcnn', pytest.param('fasterrcnn', marks=pytest.mark.slow)], ids=['Mask R-CNN', 'Faster R-CNN']
)
def test_one_file_finds_what_mmdetection_finds(kind, trained_model, run_tool, tmp_path, capfd):
    """From the picture on, with the client's pasting of masks. Bug: anchors, borders, levels or a count of the size of
    the trace; NMS across classes or levels; RoIs half a pixel aside; rows of padding among the results."""
    config, checkpoint, model = trained_model(kind)
    out = tmp_path / f'{kind}.onnx'
    assert run_tool('export', config, checkpoint, out) == 0
    said = capfd.readouterr().err
    assert '97 x 131: largest difference' in said and '\n0 detections' not in said
    running, counts = session(out), set()
    for size in SIZES:
        rgb = spots(*size)
        found = running.run(None, {'images': rgb.astype(np.float32).transpose(2, 0, 1)[None]})
        agree(found, predicted(model, rgb), size)
        counts.add(len(found[0]))
    assert len(counts) > 1 and max(counts) <= 20  # max_per_img
    Image.fromarray(rgb).save(tmp_path / 'picture.png')
    blocked = 'import sys; sys.modules.update(dict.fromkeys(("torch", "mmcv", "mmengine", "swinv2_mm"))); '
    code = f'{blocked} import runpy; runpy.run_path({str(CLIENT)!r}, run_name="__main__")'
    done = run_process(sys.executable, '-c', code, out, 'picture.png', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    assert len(lines) == len(found[0]) and all(line[0] in 'abcd' for line in lines)
    assert all(line.endswith(' pixels') == (kind == 'maskrcnn') for line in lines)


def test_a_picture_without_objects_has_no_rows(trained_model, run_tool, tmp_path, capfd):
    """And the export says that it compared nothing. Bug: rows of padding, or an error, where nothing is found."""
    config, checkpoint, _ = trained_model('maskrcnn')
    out = tmp_path / 'maskrcnn.onnx'
    options = ('--cfg-options', 'model.test_cfg.rcnn.score_thr=0.999999')
    assert run_tool('export', config, checkpoint, out, *options) == 0
    assert '0 detections were compared; ' in capfd.readouterr().err
    found = session(out).run(None, {'images': np.zeros((1, 3, 70, 50), np.float32)})
    assert [one.shape for one in found] == [(0, 4), (0,), (0,), (0, 28, 28)]


def test_detections_are_compared_whatever_their_order():
    """Bug: a file that is refused for two rows in another order, or kept with a wrong box, class or mask."""
    generator = torch.Generator().manual_seed(0)
    theirs = [torch.rand(9, 4, generator=generator) * 50, torch.rand(9, generator=generator), torch.arange(9) % 3]
    theirs.append(torch.rand(9, 28, 28, generator=generator))
    assert difference_of_detections([one.flip(0) for one in theirs], theirs, 50) == 0
    for index, change in enumerate((5.0, 0.1, 1, 0.1)):
        mine = [one.clone() for one in theirs]
        mine[index][:2] += change
        assert difference_of_detections(mine, theirs, 50) > 0.09
    for index in (torch.arange(7), torch.arange(0), torch.arange(18) % 9):
        other = [one[index] for one in theirs]
        assert difference_of_detections(other, theirs, 50) == difference_of_detections(theirs, other, 50) == 1
    doubled = [torch.cat((one[:7], one[:2])) for one in theirs]  # two are missing, but each has its like
    assert difference_of_detections(doubled, theirs, 50) > 0.09 and difference_of_detections(theirs, doubled, 50) > 0.09
    nothing = [one[:0] for one in theirs]
    assert difference_of_detections(nothing, nothing, 50) == 0
    assert difference_of_detections([torch.full_like(theirs[0], torch.nan), *theirs[1:]], theirs, 50) == float('inf')
