"""Predictions of whole models: those of the frameworks' own functions, written as the docs say."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools.coco import COCO
from support.tiny_models import write_checkpoint
from support.tiny_pictures import noise, write, write_video

from swinv2_mm.errors import UserError
from swinv2_mm.inference.found import decode


def images_of(result):
    return {image['file']: image for image in result.content['images']}


def test_a_detector_finds_what_mmdetection_finds(run, detector, photos, tmp_path):
    """Against ``inference_detector``. Bug: channels are swapped, windows or the test pipeline are not those of the run,
    or boxes and masks are of the resized picture."""
    from mmdet.apis import inference_detector, init_detector

    result = run(detector, photos)
    cfg = Config.fromstring(torch.load(detector)['meta']['cfg'], '.py')
    peer = init_detector(cfg, str(detector), device='cpu')
    for file, image in images_of(result).items():
        expected = inference_detector(peer, str(photos / file)).pred_instances
        records = image['predictions']
        assert len(records) == len(expected) > 0
        order = torch.argsort(-expected.scores, stable=True)
        assert [record['label'] for record in records] == expected.labels[order].tolist()
        boxes = torch.tensor([record['bbox'] for record in records])
        boxes[:, 2:] += boxes[:, :2]
        torch.testing.assert_close(boxes, expected.bboxes[order], atol=0.02, rtol=0)
        masks = np.stack([decode(record['segmentation']) for record in records])
        assert np.array_equal(masks, expected.masks[order].numpy())


def test_a_segmentor_finds_what_mmsegmentation_finds(run, segmentor, photos, tmp_path):
    """Against ``inference_model``. Bug: class indices count from 1, or a map has the size that the model saw."""
    from mmseg.apis import inference_model, init_model

    result = run(segmentor, photos)
    peer = init_model(Config.fromstring(torch.load(segmentor)['meta']['cfg'], '.py'), str(segmentor), device='cpu')
    for file, image in images_of(result).items():
        expected = inference_model(peer, str(photos / file)).pred_sem_seg.data[0].numpy()
        with Image.open(tmp_path / 'out' / image['map']) as saved:
            assert saved.mode == 'P' and np.array_equal(np.asarray(saved), expected)
            assert saved.getpalette()[:12] == [value for colour in result.content['palette'] for value in colour]
        assert image['pixels'] == {str(n): int((expected == n).sum()) for n in range(4) if (expected == n).any()}


def test_a_panoptic_model_writes_segments_and_a_map(run, tmp_path):
    """Bug: segments and map disagree, or two things of one class are one segment."""

    def edit(cfg):
        cfg.model.test_cfg.update(panoptic_on=True, object_mask_thr=0.0, iou_thr=0.0)
        cfg.test_dataloader.dataset.metainfo = {'classes': [f'class {index}' for index in range(80)]}

    checkpoint = write_checkpoint(tmp_path / 'panoptic.pth', 'mask2former_swinv2_t', edit)
    write(tmp_path / 'in' / 'a.png', noise(60, 70, 3))
    result = run(checkpoint, tmp_path / 'in')
    (image,) = result.content['images']
    assert result.content['task'] == 'panoptic' and len(image['predictions']) > 1
    expected = np.full((60, 70), 255)
    for record in image['predictions']:
        mask = decode(record['segmentation'])
        assert mask.any() and (expected[mask] == 255).all()
        expected[mask] = record['label']
    with Image.open(tmp_path / 'out' / image['map']) as saved:
        assert np.array_equal(np.asarray(saved), expected)
    with pytest.raises(UserError, match='--tile'):
        run(checkpoint, tmp_path / 'in', tile=64)


def test_the_files_are_those_of_the_docs(run, detector, photos, tmp_path):
    """Bug: a.jpg and sub/a.jpg are one file, predictions.json names files that are not there, or COCO's own code cannot
    read the results."""
    result = run(detector, photos, pictures=True)
    out = tmp_path / 'out'
    written = json.loads((out / 'predictions.json').read_text())
    assert written == result.content and result.failed == {} and result.folder == out
    assert [(image['file'], image['picture']) for image in written['images']] == [
        ('a.jpg', 'pictures/a.jpg'),
        ('sub/a.jpg', 'pictures/sub/a.jpg'),
        ('sub/b.png', 'pictures/sub/b.png'),
    ]
    for image in written['images']:
        drawn, given = cv2.imread(str(out / image['picture'])), cv2.imread(str(photos / image['file']))
        assert drawn.shape == given.shape == (image['height'], image['width'], 3) and (drawn != given).any()
        assert set(image) == {'file', 'width', 'height', 'picture', 'map', 'predictions'} and image['map'] is None
    coco = COCO(out / 'coco_images.json')
    results = coco.loadRes(str(out / 'coco_results.json'))
    (last,) = [image['id'] for image in coco.dataset['images'] if image['file_name'] == 'sub/b.png']
    names = [coco.cats[each['category_id']]['name'] for each in results.loadAnns(results.getAnnIds([last]))]
    assert names == [written['classes'][record['label']] for record in written['images'][2]['predictions']]
    assert {path.name for path in out.iterdir() if path.is_file() and not path.name.startswith('.')} == {
        'predictions.json',
        'coco_images.json',
        'coco_results.json',
    }


def test_a_batch_changes_nothing(run, segmentor, detector, photos, tmp_path):
    """Bug: pictures of two sizes are padded to one, and a prediction depends on which picture comes next."""
    for checkpoint in (segmentor, detector):
        one, three = (
            run(checkpoint, photos, out=tmp_path / f'{checkpoint.stem}{n}', batch_size=n, pictures=False)
            for n in (1, 3)
        )
        for image, other in zip(one.content['images'], three.content['images'], strict=True):
            assert image['file'] == other['file'] and image.get('pixels') == other.get('pixels')
            boxes, others = (np.array([r['bbox'] for r in each['predictions']]) for each in (image, other))
            np.testing.assert_allclose(boxes, others, atol=0.02)


def test_tiles_of_a_segmentor_cover_the_picture(run, segmentor, tmp_path):
    """Bug: pixels are lost or counted twice, or a picture that fits into one tile is predicted in another way."""
    write(tmp_path / 'in' / 'flat.png', np.full((100, 180, 3), 90, np.uint8))
    write(tmp_path / 'in' / 'small.png', noise(64, 64, 3))
    whole, tiled = (run(segmentor, tmp_path / 'in', out=tmp_path / f'{t}', tile=t, overlap=0.0) for t in (None, 64))
    assert images_of(whole)['small.png'] == images_of(tiled)['small.png']
    (image,) = [image for image in tiled.content['images'] if image['file'] == 'flat.png']
    assert sum(image['pixels'].values()) == 100 * 180


def test_a_picture_of_100_million_pixels(run, detector, tmp_path):
    """Bug: it needs more memory than there is, or is drawn at its full size, for which matplotlib needs gigabytes."""
    write(tmp_path / 'in' / 'large.jpg', np.full((9000, 12000, 3), 90, np.uint8))
    nothing = {'model.test_cfg.rcnn.score_thr': 0.999}  # masks of random boxes take half a minute
    result = run(detector, tmp_path / 'in', tile=6000, overlap=0.0, cfg_options=nothing)
    (image,) = result.content['images']
    assert (image['width'], image['height']) == (12000, 9000)
    assert cv2.imread(str(tmp_path / 'out' / image['picture'])).shape == (3072, 4096, 3)


STRANGE = {
    'one.png': noise(1, 1, 3),
    'row.png': noise(1, 50, 3),
    'grey.png': noise(40, 50),
    'deep.png': np.random.default_rng(0).integers(0, 65536, (40, 50, 3), np.uint16),
    'deep_grey.tiff': np.random.default_rng(0).integers(0, 65536, (40, 50), np.uint16),
    'rgba.png': noise(40, 50, 4),
}


def test_strange_and_corrupt_pictures(run, detector, segmentor, tmp_path, capsys):
    """Bug: one file that cannot be read ends the run, a truncated JPEG is predicted on grey, or a picture of one pixel,
    one channel or 16 bits fails in the model or in the drawing."""
    for name, image in STRANGE.items():
        write(tmp_path / 'in' / name, image)
    whole = write(tmp_path / 'in' / 'cut.jpg', noise(200, 200, 3)).read_bytes()
    (tmp_path / 'in' / 'cut.jpg').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'in' / 'empty.png').touch()
    (tmp_path / 'in' / 'text.jpg').write_text('no picture')
    (tmp_path / 'in' / 'notes.txt').write_text('no picture')
    (tmp_path / 'in' / 'zero.mp4').touch()
    named = [tmp_path / 'in' / name for name in ('notes.txt', 'zero.mp4')]
    for checkpoint in (detector, segmentor):
        result = run(checkpoint, [tmp_path / 'in', *named], force=True)
        assert images_of(result).keys() == STRANGE.keys()
        assert result.failed.keys() == {'cut.jpg', 'empty.png', 'text.jpg', 'notes.txt', 'zero.mp4'}
        for name, image in images_of(result).items():
            assert (image['height'], image['width']) == STRANGE[name].shape[:2]
    assert 'zero.mp4: no frame of it can be read' in capsys.readouterr().err


def test_a_truncated_jpeg_that_opencv_fills_is_corrupt(run, segmentor, tmp_path, monkeypatch):
    """Bug: OpenCV 4.10 fills the rest of a truncated file with grey, and the grey is predicted on."""
    whole = write(tmp_path / 'cut.jpg', noise(200, 200, 3)).read_bytes()
    (tmp_path / 'cut.jpg').write_bytes(whole[:-200])
    monkeypatch.setattr('mmcv.imfrombytes', lambda content, **_: np.full((200, 200, 3), 128, np.uint8))
    result = run(segmentor, tmp_path / 'cut.jpg')
    assert 'truncated' in result.failed['cut.jpg'] and result.content['images'] == []


def test_a_picture_is_turned_as_its_camera_says(run, segmentor, tmp_path):
    """Bug: width and height, or the map, are those of the file and not those of the picture that the model saw."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    Image.fromarray(noise(30, 50, 3)).save(tmp_path / 'turned.jpg', exif=exif)
    (image,) = run(segmentor, tmp_path / 'turned.jpg').content['images']
    assert (image['width'], image['height']) == (30, 50)
    for name in (image['map'], image['picture']):
        with Image.open(tmp_path / 'out' / name) as saved:
            assert saved.size == (30, 50)


@pytest.mark.parametrize('task', ['detector', 'segmentor'])
def test_a_video_becomes_a_video(run, request, task, tmp_path):
    """Bug: frames are lost, in another order or at another rate, or channels are swapped: frames as PNG files give the
    same."""
    video = write_video(tmp_path / 'clip.avi', codec='MJPG')
    reader = cv2.VideoCapture(str(video))
    for number in range(5):
        write(tmp_path / 'frames' / f'{number}.png', reader.read()[1])
    checkpoint = request.getfixturevalue(task)
    result = run(checkpoint, video, batch_size=2)
    frames = run(checkpoint, tmp_path / 'frames', out=tmp_path / 'of_frames').content['images']
    made = cv2.VideoCapture(str(tmp_path / 'out' / 'pictures' / 'clip.avi.mp4'))
    assert (made.get(cv2.CAP_PROP_FRAME_COUNT), made.get(cv2.CAP_PROP_FPS)) == (5, 10)
    for number, (image, frame) in enumerate(zip(result.content['images'], frames, strict=True)):
        assert (image['file'], image['frame'], image['picture']) == ('clip.avi', number, 'pictures/clip.avi.mp4')
        assert image.get('pixels') == frame.get('pixels') and image['width'] == 64
        np.testing.assert_allclose(
            *([record['score'] for record in each['predictions']] for each in (image, frame)), atol=1e-4
        )
        if task == 'segmentor':
            assert (tmp_path / 'out' / image['map']).read_bytes()
