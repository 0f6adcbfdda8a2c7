"""Class names in pictures are drawn in fonts that have their characters."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from mmengine.structures import InstanceData, PixelData
from support.tiny_data import images

from swinv2_mm.engine.display.fonts import fonts_for, label_areas
from swinv2_mm.engine.display.pictures import PicturesHook

CHARACTER, OTHER = '\u1b83', '\u1b84'  # letters of Sundanese, which no common font has


def write_font(path, name, character):
    """A font with one glyph, a filled square."""
    pen = TTGlyphPen(None)
    for step, corner in enumerate([(0, 0), (0, 900), (900, 900), (900, 0)]):
        (pen.lineTo if step else pen.moveTo)(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(['.notdef', 'square'])
    builder.setupCharacterMap({ord(character): 'square'})
    builder.setupGlyf({'.notdef': TTGlyphPen(None).glyph(), 'square': pen.glyph()})
    builder.setupHorizontalMetrics({'.notdef': (900, 0), 'square': (900, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({'familyName': name, 'styleName': 'Regular'})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900, usWinDescent=100)
    builder.setupPost()
    builder.save(str(path))


@pytest.fixture
def font_folder(tmp_path, monkeypatch):
    """The only folder with installed fonts; what is put into it is installed after matplotlib wrote its list."""
    folder = tmp_path / 'fonts'
    folder.mkdir()
    listed = [font for font in font_manager.fontManager.ttflist if 'mpl-data' in font.fname]
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', listed)
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda *_, **__: [str(path) for path in folder.iterdir()])
    return folder


def test_chooses_fonts_for_what_the_default_lacks(font_folder):
    """Bug: names outside of Latin are empty boxes although a font for them is installed, unless matplotlib's list of
    fonts is deleted by hand."""
    assert fonts_for('blé') == (['DejaVu Sans'], set())
    assert fonts_for('a' + CHARACTER) == (['DejaVu Sans'], {CHARACTER})
    write_font(font_folder / 'one.ttf', 'One Sans', CHARACTER)
    write_font(font_folder / 'other.ttf', 'Other', OTHER)
    (font_folder / 'broken.ttf').write_bytes(b'no font')
    assert fonts_for('a' + CHARACTER) == (['DejaVu Sans', 'One Sans'], set())
    assert fonts_for(CHARACTER + OTHER + '\u1b85') == (['DejaVu Sans', 'One Sans', 'Other'], {'\u1b85'})


def detection(name):
    from mmdet.structures import DetDataSample
    from mmdet.visualization import DetLocalVisualizer

    sample = DetDataSample()
    boxes = torch.tensor([[4.0, 4.0, 120.0, 120.0]])
    sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0]))
    sample.pred_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]), scores=torch.ones(1))
    return DetLocalVisualizer(name), sample, 0.3


def segmentation(name):
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    sample = SegDataSample()
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 128, 128).long())
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 128, 128).long())
    return SegLocalVisualizer(name), sample, None


@pytest.mark.parametrize('task', [detection, segmentation])
def test_draws_the_glyph(task, font_folder, own_process):
    """Bug: MMDetection draws an empty box for the character, and MMSegmentation question marks, since OpenCV knows only
    ASCII."""
    lines = []
    runner = SimpleNamespace(logger=SimpleNamespace(warning=lines.append))
    runner.test_dataloader = SimpleNamespace(dataset=images('1.png'))
    cv2.imwrite('1.png', np.full((128, 128, 3), 128, np.uint8))
    drawn = []
    for installed in (False, True):
        if installed:
            write_font(font_folder / 'one.ttf', 'One', CHARACTER)
        runner.visualizer, sample, score_thr = task(f'fonts_{task.__name__}_{installed}')
        runner.visualizer.dataset_meta = {'classes': (CHARACTER, 'b'), 'palette': [(250, 0, 0), (0, 0, 250)]}
        sample.set_metainfo({'img_path': '1.png'})
        hook = PicturesHook('out', score_thr=score_thr)
        hook.before_test(runner)
        hook.after_test_iter(runner, outputs=[sample])
        drawn.append(cv2.imread('out/1.png').astype(int))
    assert len(lines) == 1 and CHARACTER in lines[0] and 'apt install' in lines[0]
    left, right = np.split((np.abs(drawn[1] - drawn[0]) > 50).any(2), 2, axis=1)
    assert left.sum() > 20 and not right.any()


def test_a_name_stands_on_its_area():
    """Bug: of an area in two rows, the row between them is chosen, where none of it is: the drawing fails."""
    labels = np.zeros((1, 9, 6), np.int64)
    labels[0, [1, 7], 2:5] = 1
    places = []
    visualizer = SimpleNamespace(
        set_image=lambda image: None,
        draw_texts=lambda name, place, **_: places.append((name, *place)),
        get_image=lambda: None,
    )
    label_areas(visualizer, None, PixelData(data=torch.from_numpy(labels)), ('ground', 'leaf'), [(0, 0, 0)] * 2)
    ((_, x, y),) = [place for place in places if place[0] == 'leaf']
    assert labels[0, y, x] == 1
