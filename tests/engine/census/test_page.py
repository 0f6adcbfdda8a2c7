"""The page of pictures: one file that needs nothing else and shows what the data sets hold."""

import base64
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from pycocotools import mask as coco
from support.tiny_data import write_image

from swinv2_mm.engine.census.page import write_page
from swinv2_mm.engine.display.gallery.outlines import objects_of
from swinv2_mm.engine.display.gallery.page import choose

pytestmark = pytest.mark.usefixtures('own_process')
LOADING = {'type': 'mmcv.LoadImageFromFile', 'color_type': 'color_ignore_orientation'}


def listing(*infos, pipeline=(LOADING,), **metainfo):
    """A data set of mmengine with these samples."""

    class Samples(BaseDataset):
        def load_data_list(self):
            return [dict(info) for info in infos]

    return Samples(metainfo=metainfo, pipeline=[dict(step) for step in pipeline], serialize_data=False)


def written(datasets, **arguments):
    """Write a page, and read back its text and its data."""
    write_page('page.html', arguments.pop('title', 'title'), datasets, **arguments)
    page = Path('page.html').read_text()
    return page, json.loads(re.search('type="application/json" id="data">(.*?)</script>', page)[1])


def picture_in(url):
    return cv2.imdecode(np.frombuffer(base64.b64decode(url.partition('base64,')[2]), np.uint8), cv2.IMREAD_UNCHANGED)


def box(label, *corners, **keys):
    return {'bbox': list(corners or (1, 1, 5, 5)), 'bbox_label': label, 'ignore_flag': 0, **keys}


def test_names_from_files_are_text():
    """Bug: a file, class or title that is called like a tag becomes one, and runs scripts when the page is opened."""
    evil = '</script><img src=x onerror=alert(1)>&"\udc80'
    write_image(Path('1.png'), np.zeros((8, 8, 3), np.uint8))
    infos = {'img_path': '1.png', 'instances': [box(0)]}, {'img_path': evil, 'instances': []}
    page, content = written({evil: listing(*infos, classes=(evil,))}, title=evil, report=evil)
    assert page.count('</script>') == 2 and '<img' not in page and content['pictures'][1]['path'] == evil
    assert content['datasets'][0]['classes'] == [evil] and content['datasets'][0]['name'] == evil


def test_the_page_needs_nothing_else():
    """Bug: the page is empty without a network, or tells somebody that it is read."""
    page, _ = written({'train': listing({'img_path': 'gone.png'})})
    assert (
        re.findall(r'(?:src|href)\s*=\s*["\']?[^"\'\s>]+|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', page) == []
    )
    assert "default-src 'none'" in page and 'img-src data:;' in page


def test_a_picture_that_cannot_be_read_is_named():
    """Bug: one corrupt file among thousands, and there is no page."""
    write_image(Path('a/1.png'), np.zeros((8, 8, 3), np.uint8))
    Path('a/2.png').write_bytes(b'no picture')
    infos = [{'img_path': str(Path(f'a/{name}.png').absolute()), 'instances': [box(0)]} for name in (1, 2, 3)]
    entries = written({'train': listing(*infos, classes=('a',))})[1]['pictures']
    assert [('src' in entry, bool(entry['faults']), entry['name']) for entry in entries] == [
        (True, False, '1.png'),
        (False, True, '2.png'),
        (False, True, '3.png'),
    ]


def test_pictures_are_small_and_have_their_colours():
    """Bug: a page of camera images has gigabytes, or is blue where they are red."""
    write_image(Path('1.png'), np.full((900, 1280, 3), (10, 20, 240), np.uint8))  # BGR
    entry = written({'train': listing({'img_path': '1.png', 'height': 900, 'width': 1280})})[1]['pictures'][0]
    picture = picture_in(entry['src'])
    assert picture.shape == (450, 640, 3) and np.abs(picture[0, 0].astype(int) - (10, 20, 240)).max() < 6
    assert (entry['w'], entry['h'], entry['faults']) == (1280, 900, [])


def test_annotations_of_another_size_are_told():
    """Bug: boxes that were drawn on a turned image look like bad labels, and nobody knows why."""
    write_image(Path('1.png'), np.zeros((4, 8, 3), np.uint8))
    entry = written({'train': listing({'img_path': '1.png', 'height': 8, 'width': 4})})[1]['pictures'][0]
    assert entry['faults'] == ['it has 8 x 4 pixels, its annotations are for 4 x 8']


def ring():
    mask = cv2.circle(np.zeros((60, 90), np.uint8), (40, 30), 20, 1, -1)
    return cv2.circle(mask, (40, 30), 9, 0, -1)


def run_lengths(mask, kind):
    if kind == 'list':
        flat = mask.ravel(order='F')
        ends = np.flatnonzero(np.diff(flat)) + 1
        return {'size': list(mask.shape), 'counts': np.diff([0, *ends, flat.size]).tolist()}
    encoded = coco.encode(np.asfortranarray(mask))
    return encoded if kind == 'bytes' else dict(encoded, counts=encoded['counts'].decode())


@pytest.mark.parametrize('kind', ['list', 'bytes', 'text', 'polygons'])
def test_outlines_are_those_of_the_masks(kind):
    """Bug: run lengths are not drawn, lose their holes, or are shifted or transposed."""
    mask = ring()
    mask[50:58, 70:85] = 1
    if kind == 'polygons':
        mask = cv2.fillPoly(np.zeros((60, 90), np.uint8), [np.array([[9, 9], [70, 9], [70, 50]])], 1)
        given = [[9, 9, 71, 9, 71, 51]]
    else:
        given = run_lengths(mask, kind)
    (entry,), faults = objects_of({'instances': [box(0, mask=given)]}, 60, 90)
    polygons = [
        np.array([pair.split(',') for pair in path.rstrip('Z').split('L')], float) for path in entry['p'].split('M')[1:]
    ]
    # Drawn four times as large by the even-odd rule, as in SVG.
    drawn = np.zeros((240, 360), np.uint8)
    cv2.fillPoly(drawn, [np.round(polygon * 4).astype(np.int32) for polygon in polygons], 1)
    large = cv2.resize(mask, (360, 240), interpolation=cv2.INTER_NEAREST)
    assert (drawn & large).sum() / (drawn | large).sum() > 0.93 and faults == []


def test_crowds_are_marked_and_wrong_annotations_named():
    """Bug: one mask that cannot be read hides all others, or the page is no JSON for the browser."""
    instances = [
        box(1, 2, 3, 4, 5.04, ignore_flag=1),
        box(0, np.nan, 1, 2, 3),
        box(0, mask={'size': [4, 4], 'counts': b'54'}),
        box(0, mask=[[1, 2, np.inf, 4, 5, 6]]),
        box(0, mask=[[1, 2, 3]]),
    ]
    entries, faults = objects_of({'instances': instances}, 60, 90)
    assert entries[0] == {'c': 1, 'b': [2, 3, 4, 5], 'i': 1} and len(entries) == 5
    assert [re.search(r'object (\d)', fault)[1] for fault in faults] == ['2', '3', '4', '5']


@pytest.mark.parametrize('reduced', [False, True])
def test_maps_are_those_that_the_pipeline_loads(reduced):
    """Bug: the page shows the labels in the file, and training uses others; or a resized map lies over the image."""
    labels = np.zeros((6, 10), np.uint8)
    labels[:, 5:] = 2
    write_image(Path('1.jpg'), np.zeros((6, 10, 3), np.uint8))
    write_image(Path('1.png'), labels)
    info = {'img_path': '1.jpg', 'seg_map_path': '1.png', 'reduce_zero_label': reduced, 'seg_fields': []}
    resize = {'type': 'mmcv.Resize', 'scale': (5, 3)}
    dataset = listing(
        {**info, 'label_map': None},
        pipeline=[LOADING, resize, {'type': 'mmseg.LoadAnnotations'}],
        classes=('a', 'b', 'c'),
        palette=[[250, 0, 0], [0, 250, 0], [0, 0, 250]],
    )
    (entry,) = written({'train': dataset})[1]['pictures']
    shares = [['b', 0.5, 'rgb(0,250,0)']] if reduced else [['a', 0.5, 'rgb(250,0,0)'], ['c', 0.5, 'rgb(0,0,250)']]
    assert entry['shares'] == shares
    drawn = picture_in(entry['maps']['labels'])  # BGRA; what is ignored is transparent
    assert drawn.shape == (6, 10, 4) and drawn[0, 0].tolist() == ([0, 0, 0, 0] if reduced else [0, 0, 250, 255])
    assert drawn[0, 9].tolist() == ([0, 250, 0, 255] if reduced else [250, 0, 0, 255])


def test_few_pictures_show_all_classes_and_the_whole_data_set():
    """Bug: the page has the first pictures of a video, or none with the rare class."""
    classes = [{0} for _ in range(1000)]
    for index in (7, 8, 9, 10):
        classes[index] = {0, 1}
    chosen = choose(classes, 20)
    assert len(set(chosen)) == 20 and chosen == sorted(chosen)
    assert sum(1 in classes[index] for index in chosen) == 3
    gaps = np.diff([index for index in chosen if not 7 <= index <= 10])
    assert gaps.max() < 130
    assert choose(classes[:5], 20) == [0, 1, 2, 3, 4] and choose([], 20) == []
    assert len(choose([{index} for index in range(100)], 20)) == 20
