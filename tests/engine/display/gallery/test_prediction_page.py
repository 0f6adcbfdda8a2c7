"""The page of a folder of predictions: what is embedded, and what it says of the rest."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.tiny_data import noise, write_image

from swinv2_mm.engine.display import gallery
from swinv2_mm.engine.display.gallery import write_prediction_page
from swinv2_mm.errors import UserError


def write(folder, images, **keys):
    content = {'task': 'detection', 'classes': ['a', 'b'], 'palette': [[250, 0, 0], [0, 0, 250]], 'images': images}
    (folder / 'predictions.json').write_text(json.dumps(content | keys))


def image(name, **keys):
    return {'file': name, 'width': 64, 'height': 64, 'picture': f'pictures/{name}', 'map': None, **keys}


def written(folder, sources=None):
    page = write_prediction_page(folder, sources)
    assert page == folder / 'report.html'
    return json.loads(re.search('type="application/json" id="data">(.*?)</script>', page.read_text())[1])


def picture_in(url):
    return cv2.imdecode(np.frombuffer(base64.b64decode(url.partition('base64,')[2]), np.uint8), cv2.IMREAD_UNCHANGED)


def test_predictions_are_not_drawn_twice(tmp_path):
    """Bug: boxes of the browser over boxes in the picture. Only over the image itself it draws."""
    write_image(tmp_path / 'pictures' / '0.png', np.full((64, 64, 3), 200, np.uint8))
    write_image(tmp_path / 'in.png', np.full((64, 64, 3), 20, np.uint8))
    found = {'predictions': [{'label': 1, 'score': 0.51234, 'bbox': [1, 2, 3, 4]}]}
    write(tmp_path, [image('0.png', **found), image('1.png', **found)])
    drawn, source = written(tmp_path, {'1.png': str(tmp_path / 'in.png'), '0.png': 'gone.png'})['pictures']
    assert (drawn['drawn'], source['drawn']) == (True, False)
    assert [picture_in(each['src']).mean() for each in (drawn, source)] == pytest.approx([200, 20], abs=2)
    assert drawn['objects'] == source['objects'] == [{'c': 1, 's': 0.512, 'b': [1, 2, 4, 6]}]


def test_maps_have_the_palette_and_their_shares(tmp_path):
    """Bug: the classes of a map in the colours of another one, or counts of pixels as if they were shares."""
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 48:] = 1
    write_image(tmp_path / 'maps' / '0.png', labels)
    write_image(tmp_path / 'pictures' / '0.png', noise(0))
    pixels = {'0': 64 * 48, '1': 64 * 16}
    write(tmp_path, [image('0.png', map='maps/0.png', pixels=pixels)], task='semantic')
    (entry,) = written(tmp_path, {'0.png': str(tmp_path / 'pictures' / '0.png')})['pictures']
    assert entry['shares'] == [['a', 0.75, 'rgb(250,0,0)'], ['b', 0.25, 'rgb(0,0,250)']]
    drawn = picture_in(entry['maps']['labels'])
    assert drawn[0, 0].tolist() == [0, 0, 250, 255] and drawn[0, 63].tolist() == [250, 0, 0, 255]


def test_many_pictures_leave_some_out_and_say_so(tmp_path, monkeypatch):
    """Bug: a page of gigabytes that no browser opens, or one that seems to be all there is."""
    write_image(tmp_path / 'pictures' / '0.png', noise(0))
    rare = {'predictions': [{'label': 1, 'score': 0.9, 'bbox': [1, 2, 3, 4]}]}
    entries = [image('0.png', **(rare if index == 333 else {})) for index in range(1000)]
    write(tmp_path, entries)
    content = written(tmp_path)
    assert len(content['pictures']) == 300 and '300 of 1000' in content['note']
    assert sum(bool(each['objects']) for each in content['pictures']) == 1
    size = len(content['pictures'][0]['src'])
    monkeypatch.setattr(gallery, 'within', lambda pictures: gallery.page.within(pictures, 10 * size))
    assert len(written(tmp_path)['pictures']) == 10


def test_a_frame_of_a_video_is_that_frame(tmp_path):
    """Bug: every frame shows the first one, or none is shown, since a video is no picture."""
    (tmp_path / 'pictures').mkdir()
    video = cv2.VideoWriter(str(tmp_path / 'pictures/a.avi'), cv2.VideoWriter_fourcc(*'MJPG'), 5, (64, 64))
    for grey in range(0, 250, 25):
        video.write(np.full((64, 64, 3), grey, np.uint8))
    video.release()
    write(tmp_path, [image('a.avi', frame=index) for index in (0, 4, 9, 12)])
    *shown, last = written(tmp_path)['pictures']
    assert [picture_in(each['src']).mean() for each in shown] == pytest.approx([0, 100, 225], abs=3)
    assert [each['name'] for each in shown] == ['a.avi, frame 0', 'a.avi, frame 4', 'a.avi, frame 9']
    assert 'frame 12' in last['faults'][0]


def test_what_cannot_be_read_is_named(tmp_path):
    """Bug: one picture that was deleted, and there is no page; or a page of another file without a word."""
    write(tmp_path, [image('gone.png'), image('video.mp4', picture=None)])
    content = written(tmp_path)
    assert ['src' in each or each['faults'] == [] for each in content['pictures']] == [False, False]
    (tmp_path / 'predictions.json').write_text('[]')
    with pytest.raises(UserError, match='json cannot be read'):
        write_prediction_page(tmp_path)
    with pytest.raises(UserError, match='json cannot be read'):
        write_prediction_page(Path(tmp_path, 'nowhere'))
