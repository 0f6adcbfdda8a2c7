"""Pages in a real browser: what they show, what they hide, and that they ask nobody for anything."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco
from support.browser import CHROMIUM, WHY_NOT, Browser
from support.tiny_data import noise, write_image

from swinv2_mm.engine.display.gallery import write_prediction_page
from swinv2_mm.engine.display.gallery.outlines import jpeg
from swinv2_mm.engine.display.gallery.page import write_gallery

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT)
EVIL = '<img src=x onerror=alert(1)></script><script>alert(2)</script>&"'
SHOWN = "[...document.querySelectorAll('figure:not([hidden]) b')].map((each) => each.textContent)"


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.close()


@pytest.fixture
def quiet(browser):
    """The browser; fails if a page complains, or asks for more than itself."""
    browser.requests.clear()
    browser.complaints.clear()
    yield browser
    assert browser.complaints == []
    assert {url.partition(':')[0] for url in browser.requests} <= {'file', 'data', 'about'}
    assert all(url.startswith('data:') or url.partition('#')[0].endswith('.html') for url in browser.requests)


def set_to(browser, **values):
    """Choose in the form as a person does."""
    for name, value in values.items():
        browser(
            f"(() => {{ const it = document.getElementById('{name}');"
            f"it.type === 'checkbox' ? it.checked = {json.dumps(value)} : it.value = {json.dumps(value)};"
            "it.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )


def number_of(browser, selector):
    return browser(f'document.querySelectorAll({json.dumps(selector)}).length')


def disk():
    mask = ((np.mgrid[:64, :64] - 30) ** 2).sum(0) < 200
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(encoded, counts=encoded['counts'].decode())


def predictions(folder, **keys):
    """A folder as tools/predict.py writes it: of three pictures, the last without a prediction."""
    found = [
        [{'label': 0, 'score': 0.9, 'bbox': [4, 4, 20, 20], 'segmentation': disk()}],
        [{'label': 1, 'score': 0.4, 'bbox': [30, 30, 20, 20]}, {'label': 0, 'score': 0.2, 'bbox': [0, 0, 9, 9]}],
        [],
    ]
    images = []
    for index, predicted in enumerate(found):
        write_image(folder / 'pictures' / f'{index}.png', noise(index))
        entry = {'file': f'in/{index}.png', 'width': 64, 'height': 64, 'picture': f'pictures/{index}.png', 'map': None}
        images.append({**entry, 'predictions': predicted})
    content = {'task': 'instance', 'classes': ['disk', EVIL], 'palette': [[250, 0, 0], [0, 250, 0]], 'images': images}
    (folder / 'predictions.json').write_text(json.dumps(content | keys))
    return write_prediction_page(
        folder, {f'in/{index}.png': str(folder / f'pictures/{index}.png') for index in range(3)}
    )


def test_predictions_are_filtered_by_class_and_score(quiet, tmp_path):
    """Bug: a filter that hides nothing, or a class whose name is a tag, and runs scripts."""
    quiet.open(predictions(tmp_path))
    assert quiet(SHOWN) == ['in/0.png', 'in/1.png', 'in/2.png']
    assert (
        quiet("document.querySelectorAll('svg rect').length") == 3
        and quiet("document.querySelectorAll('svg path').length") == 1
    )
    set_to(quiet, score=0.3)
    assert quiet(SHOWN) == ['in/0.png', 'in/1.png']
    assert (
        quiet("[...document.querySelectorAll('svg rect')].filter((each) => each.style.display === 'none').length") == 1
    )
    set_to(quiet, **{'class': 'disk'})
    assert quiet(SHOWN) == ['in/0.png']
    set_to(quiet, score=0.2, **{'class': EVIL})
    assert quiet(SHOWN) == ['in/1.png']
    assert quiet("[...document.querySelectorAll('.name')].some((each) => each.textContent.includes('<img'))")
    assert quiet('document.querySelectorAll(\'img:not([src^="data:"])\').length') == 0


def test_a_link_brings_back_what_was_chosen(quiet, tmp_path):
    """Bug: a colleague opens the link, and sees all pictures."""
    page = predictions(tmp_path)
    quiet.open(page)
    set_to(quiet, score=0.35, **{'class': EVIL})
    fragment = quiet('location.hash').lstrip('#')
    quiet.open(page, fragment)
    assert quiet(SHOWN) == ['in/1.png'] and quiet("document.querySelector('output').textContent") == '0.35'


def object_of(kind, **keys):
    return {'c': 0, 'b': [8, 8, 30, 30], 'k': kind, **keys}


def report(path, **keys):
    """A page of a test, with one kind of mistake in each picture."""
    kinds = [['missed', 'rgb(0,0,250)', 'not found'], ['confused', 'rgb(200,0,200)', 'wrong class']]
    objects = [object_of('missed', t=1), object_of('confused', s=0.7, g=1), object_of('correct', s=0.9)]
    pictures = [
        {
            'd': 0,
            'path': f'{index}.png',
            'name': f'{index}.png',
            'faults': [],
            'w': 64,
            'h': 64,
            'src': jpeg(noise(index)),
            'objects': [each],
            'order': {'mistakes': index, 'missed': int(index == 0), 'confused': int(index == 1)},
        }
        for index, each in enumerate(objects)
    ]
    content = {
        'datasets': [{'name': '', 'number': 3, 'classes': ['disk', EVIL], 'colours': ['rgb(9,9,9)'] * 2}],
        'pictures': pictures,
        'kinds': [*kinds, ['correct', 'rgb(0,99,0)', 'right']],
        'sorts': ['mistakes'],
        'tiles': [['0.5', 'AP'], ['1', 'missed', 'missed'], ['1', 'confused', 'confused']],
        'tables': [{'title': 'Classes', 'head': ['class', 'AP'], 'rows': [['disk', '0.2'], [EVIL, '–'], ['c', '0.1']]}],
        'matrix': {'title': 'Confusion', 'columns': ['disk', EVIL], 'rows': [['disk', [0.5, 0.5], ['1', '1']]]},
        'rule': EVIL,
    }
    write_gallery(path, EVIL, content | keys, EVIL)
    return path


def test_mistakes_are_sorted_and_filtered(quiet, tmp_path):
    """Bug: the worst picture is the last one, a tile does nothing, or a filter hides the annotation that was missed."""
    quiet.open(report(tmp_path / 'page.html'))
    assert quiet(SHOWN) == ['2.png', '1.png', '0.png']
    quiet("document.querySelector('.tile[data-kind=missed]').click()")
    assert quiet(SHOWN) == ['0.png'] and quiet("document.getElementById('kind').value") == 'missed'
    quiet("document.querySelector('.tile[data-kind=missed]').click()")
    quiet("[...document.querySelectorAll('tr[data-class]')][1].click()")
    assert quiet(SHOWN) == ['1.png'], 'it was taken for an object of this class'
    quiet("document.querySelectorAll('#tables thead th')[1].click()")
    assert quiet("[...document.querySelectorAll('tr[data-class]')].map((each) => each.cells[1].textContent)") == [
        '–',
        '0.1',
        '0.2',
    ]
    assert quiet("document.querySelectorAll('script').length") == 2


@pytest.mark.parametrize('width', [360, 1200])
def test_no_page_is_wider_than_its_window(width, quiet, tmp_path):
    """In light and dark. Bug: on a phone the numbers lie outside of the screen, or text is black on black."""
    colours = set()
    for dark in (False, True):
        quiet.open(report(tmp_path / 'page.html'), width=width, dark=dark)
        assert quiet('document.documentElement.scrollWidth') <= width
        colours.add(quiet('getComputedStyle(document.body).color + getComputedStyle(document.body).backgroundColor'))
    assert len(colours) == 2


def test_maps_are_shown_one_at_a_time(quiet, tmp_path):
    """Bug: the error map lies under the prediction, and nobody sees it."""
    page = report(tmp_path / 'page.html')
    content = json.loads(page.read_text().split('id="data">')[1].split('</script>')[0])
    for picture in content['pictures']:
        del picture['objects']
        picture |= {
            'maps': {'errors': picture['src'], 'prediction': picture['src']},
            'shares': [['disk', 'IoU 0.5', '#fff']],
        }
    quiet.open(report(page, **content))
    visible = "[...document.querySelectorAll('.map:not([hidden])')].map((each) => each.dataset.map)"
    assert quiet(visible) == ['errors'] * 3
    set_to(quiet, **{'class': EVIL})
    assert quiet(SHOWN) == []
    set_to(quiet, map='prediction', **{'class': 'disk'})
    assert quiet(visible) == ['prediction'] * 3
    set_to(quiet, masks=False)
    assert quiet("getComputedStyle(document.querySelector('.map:not([hidden])')).display") == 'none'
