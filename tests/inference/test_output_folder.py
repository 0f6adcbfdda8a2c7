"""The output folder: what is finished is kept, nothing is mixed or lost, and mistakes come before the work."""

import json
import os
import sys
from types import ModuleType

import pytest
import torch
from support.tiny_models import write_checkpoint
from support.tiny_pictures import noise, write, write_video
from support.tiny_shapes import content

from swinv2_mm.errors import UserError
from swinv2_mm.inference import model as models


@pytest.fixture
def seen(monkeypatch):
    """How many pictures and frames the model has seen."""
    seen = []
    predict = models.Model.predict
    monkeypatch.setattr(models.Model, 'predict', lambda self, given: seen.extend(given) or predict(self, given))
    return seen


def test_what_is_finished_is_kept(run, segmentor, photos, tmp_path, seen, capsys):
    """Bug: everything is predicted again, a picture that has changed is not, or the data lack what was kept."""
    video = write_video(photos / 'clip.mp4')
    run(segmentor, [photos, video])
    assert len(seen) == 8
    before = content(tmp_path / 'out')
    assert run(segmentor, [photos, video]).kept == 4 and len(seen) == 8
    assert '4 of them are in' in capsys.readouterr().err and content(tmp_path / 'out') == before
    write(photos / 'a.jpg', noise(48, 64, 3, seed=9))
    write(photos / 'new.jpg', noise(48, 64, 3))
    (tmp_path / 'out' / 'maps' / 'sub' / 'b.png').unlink()
    result = run(segmentor, [photos, video])
    assert (result.kept, len(seen)) == (2, 11)
    files = [(image['file'], image.get('frame')) for image in result.content['images']]
    assert files[:4] == [('a.jpg', None), ('new.jpg', None), ('sub/a.jpg', None), ('sub/b.png', None)]
    assert files[4:] == [('clip.mp4', number) for number in range(5)]
    assert run(segmentor, [photos, video], force=True).kept == 0 and len(seen) == 20
    write(photos / 'a.jpg', noise(48, 64, 3))
    run(segmentor, photos / 'a.jpg', pictures=False)
    old = (tmp_path / 'out' / 'pictures' / 'a.jpg').read_bytes()
    assert run(segmentor, photos / 'a.jpg').kept == 0 and (tmp_path / 'out' / 'pictures' / 'a.jpg').read_bytes() != old


def test_an_interrupted_run_goes_on(run, segmentor, photos, tmp_path, seen, monkeypatch):
    """Bug: a killed run loses everything, its last line spoils the others, or predictions.json is there too early."""
    drawn = []

    def stop(self, image, found):
        drawn.append(image)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return image

    with monkeypatch.context() as patch:
        patch.setattr('swinv2_mm.inference.drawing.Drawer.__call__', stop)
        with pytest.raises(KeyboardInterrupt):
            run(segmentor, photos)
    out = tmp_path / 'out'
    assert not (out / 'predictions.json').exists() and sorted(os.listdir(out / 'pictures' / 'sub')) == ['a.jpg']
    with (out / '.predict.jsonl').open('a') as journal:
        journal.write('{"file": "sub/b.p')
    result = run(segmentor, photos)
    assert (result.kept, len(result.content['images']), len(seen)) == (2, 3, 4)
    assert run(segmentor, photos).kept == 3


def test_predictions_of_two_kinds_are_not_mixed(run, segmentor, photos):
    """Bug: half of the folder is of another checkpoint, threshold or window."""
    run(segmentor, photos)
    for changed in ({'window_size': 2}, {'tile': 32}, {'amp': 'bf16'}, {'score_thr': 0.5}):
        with pytest.raises(UserError, match=f'another --{next(iter(changed)).replace("_", "-")}'):
            run(segmentor, photos, **changed)
    with pytest.raises(UserError, match='another config'):
        run(segmentor, photos, cfg_options={'model.test_cfg.mode': 'slide'})


def test_pictures_of_others_are_not_replaced(run, segmentor, tmp_path):
    """Bug: p/a.png and then q/a.png are written to one place, and the first is lost; or the map of the first is kept
    for the second, since both are called a.png."""
    for folder in 'pq':
        write(tmp_path / folder / 'a.png', noise(20, 30, 3, seed=ord(folder)))
    first = run(segmentor, tmp_path / 'p')
    before = content(tmp_path / 'out')
    with pytest.raises(UserError, match=r'p/a.png, and .*q/a.png would replace it'):
        run(segmentor, tmp_path / 'q')
    assert content(tmp_path / 'out') == before
    second = run(segmentor, tmp_path / 'q', force=True)
    assert first.content['images'] != second.content['images'] and len(second.content['images']) == 1
    (tmp_path / 'other' / 'pictures').mkdir(parents=True)
    (tmp_path / 'other' / 'pictures' / 'a.png').write_text('precious')
    with pytest.raises(UserError, match='exists'):
        run(segmentor, tmp_path / 'p', out=tmp_path / 'other')
    assert (tmp_path / 'other' / 'pictures' / 'a.png').read_text() == 'precious'


def test_a_folder_that_cannot_be_written(run, segmentor, photos, tmp_path, monkeypatch, seen):
    """Bug: an hour of predictions before the message; or a half picture and a traceback when the disk is full."""
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'--out: .*file/out cannot be written'):
        run(segmentor, photos, out=tmp_path / 'file' / 'out')
    assert seen == []

    def full(path, data):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(UserError, match=r'a.jpg cannot be written: No space left'):
        run(segmentor, photos)
    assert os.listdir(tmp_path / 'out' / 'pictures') == []


def test_a_page_is_written_of_the_predictions(run, segmentor, photos, tmp_path, monkeypatch):
    """Bug: --report shows the predictions of an earlier run, or ends in a traceback on a full disk."""
    page = ModuleType('gallery')
    sources = {}

    def write(out, found):
        sources.update(found)
        (out / 'report.html').write_bytes((out / 'predictions.json').read_bytes())

    page.write_prediction_page = write
    monkeypatch.setitem(sys.modules, 'swinv2_mm.engine.display.gallery', page)
    result = run(segmentor, photos, report=True, pictures=False)
    assert json.loads((tmp_path / 'out' / 'report.html').read_text()) == result.content
    assert sources.keys() == {image['file'] for image in result.content['images']}
    assert all(os.path.isfile(path) for path in sources.values())

    def full(*_):
        raise OSError(28, 'No space left on device')

    page.write_prediction_page = full
    with pytest.raises(UserError, match=r'report.html cannot be written: No space left'):
        run(segmentor, photos, report=True, pictures=False)


def test_a_camera_is_recorded_until_it_is_stopped(run, segmentor, tmp_path, monkeypatch):
    """Bug: Ctrl-C, which ends a recording, loses it; or a second recording is taken for the first, and kept. Here the
    file stands in for a camera."""
    import cv2

    write_video(tmp_path / 'scene.mp4')
    camera = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', lambda name: camera(str(tmp_path / 'scene.mp4') if name == 3 else name))
    predict, calls = models.Model.predict, []

    def interrupted(self, given):
        calls.append(given)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predict(self, given)

    monkeypatch.setattr(models.Model, 'predict', interrupted)
    result = run(segmentor, ['3'])
    assert [image['frame'] for image in result.content['images']] == [0, 1, 2]
    assert camera(str(tmp_path / 'out' / 'pictures' / 'camera3.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    with pytest.raises(UserError, match=r'camera3.mp4 exists'):
        run(segmentor, ['3'])


@pytest.mark.parametrize(
    ('changed', 'words'),
    [
        ({'score_thr': 30}, '--score-thr 30'),
        ({'batch_size': 0}, '--batch-size 0'),
        ({'tile': 8}, '--tile 8'),
        ({'tile': 64, 'overlap': 0.9}, '--overlap 0.9'),
        ({'amp': 'half'}, '--amp half'),
        ({'device': 'warp:1'}, '--device warp:1'),
        ({'window_size': [4, 4, 4]}, 'window_size'),
        ({'cfg_options': {'model.no.part': 1}}, 'model.no'),
    ],
)
def test_arguments_are_checked_before_anything_is_predicted(run, segmentor, photos, seen, changed, words):
    """Bug: a wrong argument is ignored, or found after the first thousand pictures."""
    with pytest.raises(UserError, match=words):
        run(segmentor, photos, **changed)
    assert seen == [] and not (photos.parent / 'out').exists()


def edited(path, segmentor, edit):
    checkpoint = torch.load(segmentor)
    torch.save(edit(checkpoint) or checkpoint, path)
    return path


CHECKPOINTS = {
    'no_config': (lambda content: content['meta'].pop('cfg') and None, 'does not hold the config'),
    'no_meta': (lambda content: content['state_dict'], 'does not hold the config'),
    'backbone': (
        lambda content: content.update(
            state_dict={key: value for key, value in content['state_dict'].items() if key.startswith('backbone')}
        ),
        'does not fit this config',
    ),
    'other_framework': (
        lambda content: content['meta'].update(cfg="default_scope = 'mmpretrain'\nmodel = dict(type='A')"),
        'no model of MMDetection or MMSegmentation',
    ),
    'no_classes': (
        lambda content: content['meta'].update(
            dataset_meta={}, cfg=content['meta']['cfg'].replace('metainfo=dict', 'other=dict')
        ),
        'names the classes',
    ),
}


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_wrong_checkpoint_is_named(run, segmentor, photos, tmp_path, name):
    """Bug: heads of random weights predict, or a KeyError."""
    edit, words = CHECKPOINTS[name]
    with pytest.raises(UserError, match=words):
        run(edited(tmp_path / 'edited.pth', segmentor, edit), photos)


def test_the_config_of_another_task_is_named(run, segmentor, detector, photos, tmp_path):
    """Bug: what fits is loaded, the rest stays random; or the config beside the checkpoint is overlooked."""
    config = tmp_path / 'detector.py'
    config.write_text(torch.load(detector)['meta']['cfg'])
    with pytest.raises(UserError, match='does not fit this config'):
        run(segmentor, photos, config=config)
    with pytest.raises(UserError, match=r'no_such.pth does not exist'):
        run(tmp_path / 'no_such.pth', photos)
    text = tmp_path / 'text.pth'
    text.write_text('no checkpoint')
    with pytest.raises(UserError, match='text file'):
        run(text, photos)
    bare = edited(tmp_path / 'bare.pth', detector, lambda content: content['state_dict'])
    result = run(bare, photos, config=config)
    assert result.content['classes'] == ['disk', 'ring', 'star']


def test_another_window_changes_what_is_found(run, tmp_path, photos):
    """Bug: --window-size is accepted and has no effect."""
    checkpoint = write_checkpoint(tmp_path / 'model.pth', 'upernet_swinv2_t_shapes')
    results = [run(checkpoint, photos, out=tmp_path / f'{w}', window_size=w) for w in (None, 4, 8)]
    maps = [json.dumps([image['pixels'] for image in result.content['images']]) for result in results]
    assert maps[0] == maps[1] != maps[2]
