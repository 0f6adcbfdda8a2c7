"""Videos: written completely or not at all, and made of pictures."""

import os

import cv2
import numpy as np
import pytest
from support.tiny_pictures import noise, write

from swinv2_mm.errors import UserError
from swinv2_mm.inference.videos import make_video, video_file


def count(path):
    return cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)


def test_a_video_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    """Bug: a recording that fails in the middle replaces the earlier one, or frames that a full disk swallowed, of
    which OpenCV says nothing, are taken for written."""
    path = tmp_path / 'video.mp4'
    with video_file(path, 10) as add:
        for seed in range(3):
            add(noise(48, 64, 3, seed=seed))
    assert count(path) == 3
    with pytest.raises(RuntimeError), video_file(path, 10) as add:
        add(noise(48, 64, 3))
        raise RuntimeError
    with pytest.raises(OSError, match='0 of 0 frames'), video_file(path, 10):
        pass
    writer = cv2.VideoWriter
    monkeypatch.setattr(cv2, 'VideoWriter', lambda name, *rest: writer('/dev/full', *rest))
    monkeypatch.setattr(cv2.VideoWriter, 'fourcc', writer.fourcc, raising=False)
    with pytest.raises(OSError, match='of 1 frames'), video_file(path, 10) as add:
        add(noise(48, 64, 3))
    assert count(path) == 3 and os.listdir(tmp_path) == ['video.mp4']


def test_make_video_shows_each_picture(run_tool, tmp_path, capsys):
    """Bug: pictures of other shapes end the video, or leave black borders in which a detector sees things."""
    for number, shape in enumerate(((60, 80), (90, 40), (30, 30))):
        write(tmp_path / 'in' / f'{number}.png', np.full((*shape, 3), 80 + 60 * number, np.uint8))
    assert run_tool('make_video', 'in', 'out/video.mp4', '--side', '64', '--hold', '2') == 0
    assert '6 frames' in capsys.readouterr().out
    reader = cv2.VideoCapture('out/video.mp4')
    shown = [reader.read()[1] for _ in range(6)]
    assert [frame.shape for frame in shown] == [(48, 64, 3)] * 6
    for number, frame in enumerate(shown):
        assert abs(frame.astype(int) - (80 + 60 * (number // 2))).max() < 12
    (tmp_path / 'in' / 'text.jpg').write_text('no picture')
    assert run_tool('make_video', 'in', 'other.mp4') == 2
    assert 'text.jpg cannot be read' in capsys.readouterr().err and not (tmp_path / 'other.mp4').exists()
    with pytest.raises(UserError, match=r'written as .mp4'):
        make_video(tmp_path / 'in', tmp_path / 'video.gif', 64, 10, 2)
