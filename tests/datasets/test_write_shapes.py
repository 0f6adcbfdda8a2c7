"""datasets/shapes.py: a data set is written completely, the same every time, or not at all."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.tiny_shapes import SPEC, TINY, content

from swinv2_mm.datasets import SPLITS, ShapesSpec, drawing, render, write_shapes


def test_same_parameters_give_the_same_bytes(written, tmp_path):
    """A global random state, a date or an unsorted listing would make every run another data set."""
    np.random.seed(1)
    write_shapes(SPEC, tmp_path / 'again')
    assert content(tmp_path / 'again') == content(written)


def test_a_larger_set_keeps_the_earlier_images(written, tmp_path):
    """One random stream for the whole set would make results of two sizes incomparable."""
    spec = ShapesSpec(SPEC.seed, SPEC.size, SPEC.num_train + 2, SPEC.num_val + 1)
    write_shapes(spec, tmp_path / 'larger')
    larger, smaller = content(tmp_path / 'larger'), content(written)
    assert {name: larger[name] for name in smaller if name.endswith('.png')} == {
        name: data for name, data in smaller.items() if name.endswith('.png')
    }
    name = 'annotations/instances_training.json'
    annotations = json.loads(smaller[name])['annotations']
    assert json.loads(larger[name])['annotations'][: len(annotations)] == annotations


def test_the_layout_is_the_documented_one(written):
    """Configurations name these folders and files; a renamed one is found only when training starts."""
    names = {'shapes.json'}
    for split, count in zip(SPLITS, (SPEC.num_train, SPEC.num_val), strict=True):
        names.add(f'annotations/instances_{split}.json')
        names |= {f'{kind}/{split}/{i:06d}.png' for kind in ('images', 'annotations') for i in range(count)}
    assert SPLITS == ('training', 'validation')
    assert set(content(written)) == names


def test_files_hold_what_render_returns(written):
    """RGB written as BGR trains on other colours than it is tested on; a lossy file changes masks."""
    sample = render(SPEC, 'validation', 3)
    image = cv2.imread(str(written / 'images/validation/000003.png'))
    semantic = cv2.imread(str(written / 'annotations/validation/000003.png'), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(image[..., ::-1], sample.image)
    assert np.array_equal(semantic, sample.semantic) and semantic.dtype == np.uint8 and semantic.ndim == 2


@pytest.mark.parametrize('force', [False, True])
@pytest.mark.parametrize(
    'files',
    [
        {'notes.txt': 'mine'},
        {'shapes.json': 'mine'},
        {'shapes.json': '[]'},
        {'shapes.json': '{"generator": "mine", "parameters": {}}'},
        {'shapes.json': '{"generator": "swinv2_mm.datasets"}', 'images/0.png': ''},
    ],
)
def test_a_foreign_folder_is_refused_and_left_alone(tmp_path, files, force):
    """A mistyped folder name must never cost anyone their files, not even with force."""
    out = tmp_path / 'data'
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match='choose another folder'):
        write_shapes(TINY, out, force=force)
    assert content(tmp_path) == before


def test_an_existing_set_is_replaced_only_by_force(tmp_path):
    """The same parameters cost nothing; others, or missing files, are said instead of silently trained on."""
    out = tmp_path / 'set'
    out.mkdir()  # an empty folder is welcome
    other = ShapesSpec(seed=1, size=32, num_train=3, num_val=2)
    assert write_shapes(TINY, out)
    before = content(tmp_path)
    assert not write_shapes(TINY, out)
    assert not write_shapes(TINY, out, force=True)
    with pytest.raises(FileExistsError, match=r'seed=0, not 1.*--force'):
        write_shapes(other, out)
    assert content(tmp_path) == before
    assert write_shapes(other, out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ['set']
    assert not write_shapes(other, out)

    (out / 'images/training/000001.png').unlink()
    with pytest.raises(FileExistsError, match=r'1 of its files missing .images/training/000001.png'):
        write_shapes(other, out)
    (out / 'model.pth').write_text('mine')
    with pytest.raises(FileExistsError, match=r'model\.pth'):
        write_shapes(other, out, force=True)
    (out / 'model.pth').unlink()
    assert write_shapes(other, out, force=True)
    assert not write_shapes(other, out)


def test_other_constants_make_another_set(tmp_path, monkeypatch):
    """Whoever tunes the difficulty must not go on training on the images made before."""
    write_shapes(TINY, tmp_path / 'set')
    monkeypatch.setattr(drawing, 'DIFFICULTY', dataclasses.replace(drawing.DIFFICULTY, grain=0.0))
    with pytest.raises(FileExistsError, match='another version'):
        write_shapes(TINY, tmp_path / 'set')


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    """Renaming over the current folder leaves the caller's shell in a deleted one."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match='current folder'):
        write_shapes(TINY, '.')
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    """Data folders are often links to another disk; replacing the link would fill the wrong one."""
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'disk')
    write_shapes(TINY, tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'disk/shapes.json').is_file()


@pytest.mark.parametrize('kind', [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize('existing', [False, True])
def test_an_exception_leaves_everything_as_it_was(tmp_path, kind, existing):
    """Half a data set that looks whole trains without a word; a failed replacement must not cost the old set."""
    out = tmp_path / 'set'
    if existing:
        write_shapes(ShapesSpec(seed=1, size=32, num_train=1, num_val=1), out)
    before = content(tmp_path)

    def stop(done: int, total: int) -> None:
        assert total == 5
        if done == 4:
            raise kind

    with pytest.raises(kind):
        write_shapes(TINY, out, force=True, progress=stop)
    assert content(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (['set'] if existing else [])


def test_a_set_that_appears_meanwhile_is_kept(tmp_path):
    """Two jobs started at once on a fresh folder: both end well on equal parameters, neither overwrites other ones."""
    out = tmp_path / 'set'

    def at_the_end(spec: ShapesSpec, folder: Path):
        return lambda done, total: done == total and write_shapes(spec, folder)

    assert write_shapes(TINY, out, progress=at_the_end(TINY, out))
    assert [p.name for p in tmp_path.iterdir()] == ['set'] and not write_shapes(TINY, out)

    other = ShapesSpec(seed=1, size=32, num_train=1, num_val=1)
    with pytest.raises(FileExistsError, match='seed=1, not 0'):
        write_shapes(TINY, tmp_path / 'late', progress=at_the_end(other, tmp_path / 'late'))
    assert not write_shapes(other, tmp_path / 'late')
    assert {p.name for p in tmp_path.iterdir()} == {'set', 'late'}
