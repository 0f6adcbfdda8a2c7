"""Which inputs paths, folders, globs and numbers stand for, and the names of their outputs."""

import pytest
from support.tiny_shapes import content

from swinv2_mm.errors import UserError
from swinv2_mm.inference.inputs import find_inputs


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def files(*given, out='out'):
    return [(each.kind, each.file, each.picture, each.map) for each in find_inputs(given, out)]


def test_a_folder_stands_for_all_pictures_below(place, capsys):
    """Bug: sub-folders or upper-case endings are left out, or hidden files, notes and earlier outputs are taken."""
    names = 'p/a.jpg', 'p/s/B.PNG', 'p/.hidden.jpg', 'p/.git/c.jpg', 'p/notes.txt', 'p/pictures/a.jpg', 'p/maps/a.png'
    touch(place, *names)
    found = files('p', out='p')
    assert found == files('p/**/*.jpg', 'p/s/*', out='p')
    assert found == [('picture', 'a.jpg', 'a.jpg', 'a.png'), ('picture', 's/B.PNG', 's/B.PNG', 's/B.png')]
    assert 'notes.txt' in capsys.readouterr().err


def test_no_two_inputs_share_an_output(place):
    """Bug: x/1.jpg and y/1.jpg, 1.jpg and 1.png, or clip.avi and clip.mov overwrite each other."""
    touch(place, 'x/p/1.jpg', 'y/p/1.jpg', 'y/p/1.png', 'clip.avi', 'clip.mov', 'clip.mp4')
    found = find_inputs(['x', 'y', 'clip.avi', 'clip.mov', 'clip.mp4'], place / 'out')
    for kind in ('file', 'picture', 'map'):
        assert len({getattr(each, kind) for each in found}) == len(found) == 6
    touch(place, 'clip.avi.mp4')
    with pytest.raises(UserError, match='would both be written'):
        find_inputs(['clip.avi', 'clip.avi.mp4'], place / 'out')


def test_an_input_that_is_named_twice_is_one(place):
    """Bug: a picture is predicted twice, or a link from a folder to itself never ends."""
    touch(place, 'p/a.jpg')
    (place / 'p' / 'loop').symlink_to(place / 'p')
    assert files('p', 'p/a.jpg', './p/*.jpg', 'p/../p/a.jpg') == [('picture', 'a.jpg', 'a.jpg', 'a.png')]


def test_cameras_videos_and_globs(place):
    """Bug: a file that is called 0 is taken for a camera, a file with brackets for a pattern, or both for files."""
    touch(place, '0', 'a[1].jpg', 'v.mov', 'p/s/b.jpg')
    kinds = [each.kind for each in find_inputs(['0', '1', '/dev/video2', 'a[1].jpg', 'v.mov', '**/b.jpg'], place)]
    assert kinds == ['picture', 'picture', 'video', 'picture', 'camera', 'camera']


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ('missing.jpg', 'missing.jpg does not exist'),
        ('*.jpg', r'\*\.jpg: no file matches'),
        ('empty', 'It is empty'),
        ('texts', r'holds no file .*notes.txt'),
    ],
)
def test_an_input_without_a_picture_is_a_mistake(place, given, words):
    """Bug: an empty folder or a typo predicts nothing and ends as a success."""
    (place / 'empty').mkdir()
    touch(place, 'texts/notes.txt')
    before = content(place)
    with pytest.raises(UserError, match=words):
        find_inputs([given], place / 'out')
    assert content(place) == before
