"""Names of outputs: each image has its own, below the folder, and a flat folder keeps its names."""

import os
from pathlib import Path

import pytest

from swinv2_mm.engine.display.names import OutputNames


def named(paths, maps=False):
    names = OutputNames(paths, maps)
    return [names[path].as_posix() for path in paths]


@pytest.mark.parametrize(
    ('paths', 'pictures', 'maps'),
    [
        (['/d/img/1.jpg', '/d/img/2.JPG'], ['1.jpg', '2.JPG'], ['1.png', '2.png']),
        (['/d/a/01.png', '/d/b/01.png'], ['a/01.png', 'b/01.png'], ['a/01.png', 'b/01.png']),
        (['/d/1.png', '/d/b/1.png'], ['1.png', 'b/1.png'], ['1.png', 'b/1.png']),
        (['/d/x.jpg', '/d/x.png', '/d/y.jpg'], ['x.jpg', 'x.png', 'y.jpg'], ['x.jpg.png', 'x.png', 'y.png']),
        (['/x.npy', '/y.dcm', '/z'], ['x.npy.png', 'y.dcm.png', 'z.png'], ['x.png', 'y.png', 'z.png']),
        (['/home/u/1.png', '/data/1.png'], ['home/u/1.png', 'data/1.png'], ['home/u/1.png', 'data/1.png']),
        (['s3://b/1.png', '/data/1.png'], ['s3/b/1.png', 'data/1.png'], ['s3/b/1.png', 'data/1.png']),
        (['/d/ü 1/Blatt 葉.jpg', '/d/2/x.y.jpg'], ['ü 1/Blatt 葉.jpg', '2/x.y.jpg'], ['ü 1/Blatt 葉.png', '2/x.y.png']),
        (['/d/img/../img/1.png', '/d/img/1.png'], ['1.png', '1.png'], ['1.png', '1.png']),
    ],
)
def test_keeps_what_distinguishes_the_images(paths, pictures, maps):
    """Bug: a/01.png and b/01.png, or x.jpg and x.png, are written to one file, and one result is lost."""
    assert (named(paths), named(paths, maps=True)) == (pictures, maps)


@pytest.mark.parametrize('maps', [False, True])
def test_no_two_images_share_a_file(maps):
    """Bug: a name that was changed to avoid one image is that of another, or the folder of another."""
    paths = ['/d/x', '/d/x.npy', '/d/x.npy.png', '/d/x.npy-2.png', '/d/x.jpg', '/d/x.png/1.png', '/d/y.dcm', '/d/y.npy']
    names = named(paths, maps)
    folders = {str(parent) for name in names for parent in Path(name).parents}
    assert len(set(names)) == len(paths) and not folders & set(names)


@pytest.mark.parametrize('maps', [False, True])
def test_nothing_lands_outside_of_the_folder(maps, tmp_path):
    """Bug: a path with .. or an absolute one, announced or not, is joined to the output folder and leaves it."""
    paths = ['../x.png', 's3://bucket/../../../../y.png', '/z.png', '~/u.png', str(tmp_path / 'a/../../v.png'), '']
    names = OutputNames(paths[:3], maps)
    for path in paths:
        joined = os.path.normpath(tmp_path / 'out' / names[path])
        assert joined.startswith(f'{tmp_path}/out/'), path


def test_folders_above_a_link_are_those_of_the_disk(tmp_path):
    """Bug: a/link/../1.png, which lies beside the target of the link, gets the name of a/1.png."""
    for folder in ('a', 'b/c'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'a/link').symlink_to(tmp_path / 'b/c')
    assert named([f'{tmp_path}/a/link/../1.png', f'{tmp_path}/a/1.png']) == ['b/1.png', 'a/1.png']


def test_the_order_of_the_images_does_not_matter():
    """Bug: processes of a distributed test, or two runs, number the same images in different ways."""
    paths = ['/d/y.dcm', '/d/x.jpg', '/d/x.png', '/d/x.jpg.dcm', '/d/x.jpg.png', '/d/b/x.jpg']
    forth, back = OutputNames(paths, maps=True), OutputNames(paths[::-1] * 2, maps=True)
    assert [forth[path] for path in paths] == [back[path] for path in paths]
