"""The shapes data set: what is written is what is drawn, the same every time, whole or not at all."""

import contextlib
import dataclasses
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from swinv2_mm.datasets import shapes as datasets
from swinv2_mm.datasets.shapes import OUTLINES, SPLITS, ShapesSpec, _box, _segmentation, render, write_shapes

ROOT = Path(__file__).parents[2]
TOOL = [sys.executable, str(ROOT / 'tools' / 'make_shapes.py')]
ENV = {**os.environ, 'PYTHONPATH': str(ROOT)}
SPEC = ShapesSpec(seed=0, size=64, num_train=40, num_val=8)
TINY = ShapesSpec(size=32, num_train=3, num_val=2)


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its relative name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def run_tool(*arguments: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*TOOL, *map(str, arguments)], env=ENV, capture_output=True, text=True, timeout=60, **options)


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp('shapes') / 'set'
    assert write_shapes(SPEC, out)
    return out


@pytest.fixture(params=SPLITS)
def coco(written, request) -> tuple[COCO, str]:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(written / 'annotations' / f'instances_{request.param}.json')), request.param


# ------------------------------------------------------------------------------------------------------ determinism


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


def test_no_image_is_made_twice():
    """Seeding with seed + index would give neighbouring seeds, or training and validation, the same images."""
    images = {
        render(ShapesSpec(seed=seed, size=32), split, index).image.tobytes()
        for seed in (0, 1, 2)
        for split in SPLITS
        for index in range(5)
    }
    assert len(images) == 3 * 2 * 5


# ------------------------------------------------------------------------------------------------------ annotations


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


def test_instances_and_semantic_maps_tell_the_same(coco, written):
    """Instance by instance, the decoded masks rebuild the semantic map exactly.

    Bugs prevented: class numbers off by one between the two, hidden parts counted as visible, overlapping masks,
    outlines through pixel centres (they lose half a pixel all around), rows and columns exchanged in run lengths.
    """
    api, split = coco
    for info in api.loadImgs(api.getImgIds()):
        semantic = cv2.imread(str(written / 'annotations' / split / info['file_name']), cv2.IMREAD_UNCHANGED)
        assert semantic.shape == (info['height'], info['width'])
        rebuilt = np.ones_like(semantic)
        for annotation in api.loadAnns(api.getAnnIds(info['id'])):
            mask = api.annToMask(annotation).astype(bool)
            assert (rebuilt[mask] == 1).all(), 'instances overlap'
            rebuilt[mask] = annotation['category_id'] + 1
        assert np.array_equal(rebuilt, semantic)


def test_area_and_box_are_those_of_the_visible_mask(coco):
    """A box of the hidden whole, or one pixel short, caps the average precision that a perfect detector reaches."""
    api, _ = coco
    for annotation in api.loadAnns(api.getAnnIds()):
        mask = api.annToMask(annotation)
        x, y, w, h = cv2.boundingRect(mask)
        assert annotation['bbox'] == [x, y, w, h]
        assert annotation['area'] == np.count_nonzero(mask)


def test_annotations_are_what_the_frameworks_accept(coco):
    """COCOeval takes the id 0 for "unmatched"; MMDetection scales polygons in place, so integers would be cut off."""
    api, _ = coco
    annotations = api.loadAnns(api.getAnnIds())
    assert len({a['id'] for a in annotations}) == len(annotations) and min(a['id'] for a in annotations) == 1
    assert [c['name'] for c in api.loadCats(api.getCatIds())] == list(SPEC.classes)
    for annotation in annotations:
        assert annotation['iscrowd'] == 0
        if isinstance(annotation['segmentation'], list):
            assert all(len(p) >= 6 and all(isinstance(v, float) for v in p) for p in annotation['segmentation'])
        else:
            assert isinstance(annotation['segmentation']['counts'], list)


def test_polygons_and_run_lengths_both_occur():
    """Code that reads only one kind must fail on the default set; and a hole must never be filled by a polygon."""
    kinds = {
        type(_segmentation(instance.mask))
        for index in range(30)
        for instance in render(ShapesSpec(size=64), 'training', index).instances
    }
    assert kinds == {list, dict}
    rings = ShapesSpec(classes=('ring',), size=64)
    whole = [i for n in range(20) for i in render(rings, 'training', n).instances if i.visible_share == 1]
    assert whole and all(isinstance(_segmentation(instance.mask), dict) for instance in whole)


@pytest.mark.parametrize('density', [0.1, 0.5, 0.9])
def test_any_mask_survives_coco(density):
    """Specks, bridges of one corner, nested holes, masks touching every border: the rare cases, made frequent."""
    rng = np.random.default_rng(0)
    api = COCO()
    for _ in range(100):
        mask = rng.random(rng.integers(1, 20, 2)) < density
        if mask.any():
            api.imgs = {0: {'height': mask.shape[0], 'width': mask.shape[1]}}
            decoded = api.annToMask({'image_id': 0, 'segmentation': _segmentation(mask)})
            assert np.array_equal(decoded, mask)
            assert _box(mask) == list(cv2.boundingRect(mask.astype(np.uint8)))


# ----------------------------------------------------------------------------------------------------- the pictures


@pytest.mark.parametrize('size', [32, 64])
def test_every_image_has_an_instance_and_each_can_be_seen(size):
    """An image without instances is dropped by some pipelines; one hidden to the last pixels cannot be learnt."""
    spec = ShapesSpec(size=size, classes=tuple(OUTLINES))
    for index in range(150):
        sample = render(spec, 'training', index)
        assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
        assert 1 <= len(sample.instances) <= 4
        for instance in sample.instances:
            assert instance.mask.sum() >= 40
            assert 0.25 <= instance.visible_share <= 1


def test_an_image_in_which_nothing_fits_still_has_an_instance(monkeypatch):
    """Bad luck in placing is rare enough to show up only in someone's set of a million images."""
    monkeypatch.setattr(datasets, 'DIFFICULTY', dataclasses.replace(datasets.DIFFICULTY, tries=0))
    for size in (32, 64):
        [instance] = render(ShapesSpec(size=size), 'training', 0).instances
        assert instance.mask.sum() >= 40


def test_the_set_is_varied_and_has_occlusion():
    """A class that is hardly ever placed, or shapes that never meet, would make a test of training worthless."""
    instances = [i for n in range(150) for i in render(SPEC, 'training', n).instances]
    share = np.bincount([i.label for i in instances], minlength=len(SPEC.classes)) / len(instances)
    assert share.min() > 0.18
    hidden = np.array([i.visible_share for i in instances])
    assert 0.1 < (hidden < 0.75).mean() < 0.5
    side = np.sqrt([i.mask.sum() for i in instances]) / SPEC.size
    assert (side < 0.25).mean() > 0.1 and (side > 0.45).mean() > 0.1


def test_neither_colour_nor_area_tells_the_class():
    """A palette per class, or disks twice as large as stars, would let a model score without seeing any shape."""
    colours, areas = [[] for _ in SPEC.classes], [[] for _ in SPEC.classes]
    for index in range(250):
        sample = render(SPEC, 'training', index)
        for instance in sample.instances:
            colours[instance.label].append(sample.image[instance.mask].mean(axis=0) / 255)
            areas[instance.label].append(np.log(instance.mask.sum()))
    means = np.array([np.mean(c, axis=0) for c in colours])
    assert np.ptp(means, axis=0).max() < 0.15
    assert np.ptp([np.mean(a) for a in areas]) < 0.3


def test_shapes_stand_out_from_the_background():
    """Shapes coloured like what they lie on are noise in the labels."""
    for index in range(50):
        sample = render(SPEC, 'training', index)
        ground = sample.image[sample.semantic == 1].mean(axis=0) / 255
        for instance in sample.instances:
            assert np.linalg.norm(sample.image[instance.mask].mean(axis=0) / 255 - ground) > 0.2


# ------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'size': 31}, ['size=31', '32']),
        ({'num_train': 0}, ['num_train=0', '1']),
        ({'num_val': -1}, ['num_val=-1', '1']),
        ({'seed': -1}, ['seed=-1', '0']),
        ({'size': 64.5}, ['size=64.5', 'integer']),
        ({'classes': ()}, ['classes', 'at least one', 'disk']),
        ({'classes': ('disk', 'blob')}, ['classes', "'blob'", *OUTLINES]),
        ({'classes': ('disk', 'disk')}, ['classes', "'disk' twice"]),
        ({'classes': 'disk'}, ['classes', "'disk'", 'tuple']),
    ],
)
def test_bad_parameters_are_named(arguments, words):
    """A bad value must not come up as an index error in the middle of drawing."""
    with pytest.raises(ValueError) as error:
        ShapesSpec(**arguments)
    assert all(word in str(error.value) for word in words)


def test_an_unknown_split_or_index_is_named():
    """'train' for 'training' would otherwise make a third set, or a KeyError without a remedy."""
    with pytest.raises(ValueError, match=r"split='train'.*training, validation"):
        render(TINY, 'train', 0)
    with pytest.raises(ValueError, match='index=-1'):
        render(TINY, 'training', -1)


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
    monkeypatch.setattr(datasets, 'DIFFICULTY', dataclasses.replace(datasets.DIFFICULTY, grain=0.0))
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


# ------------------------------------------------------------------------------------------------------ interrupted


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


def start_and_signal(out: Path, signum: int) -> subprocess.CompletedProcess:
    """Start the tool on a set too large to finish, and send a signal once it writes images."""
    # A job in the background of a shell starts with SIGINT ignored, and so would its children.
    process = subprocess.Popen(
        [*TOOL, str(out), '--size', '32', '--num-train', '1000000'],
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 30
        while not list(out.parent.glob('.set.tmp-*/images/training/000003.png')):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@pytest.mark.parametrize(('signum', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_leaves_nothing(tmp_path, signum, code):
    """Schedulers stop jobs with SIGTERM, which ends Python without running any cleanup unless it is caught."""
    done = start_and_signal(tmp_path / 'set', signum)
    assert done.returncode == code and 'Traceback' not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_only_a_temporary_folder_which_is_swept_later(tmp_path):
    """After SIGKILL the name itself must stay free; the remains go away, but never those of a run still at work."""
    out = tmp_path / 'set'
    start_and_signal(out, signal.SIGKILL)
    assert not out.exists()
    [remains] = tmp_path.iterdir()
    assert remains.name.startswith('.set.tmp-') and not (remains / 'shapes.json').exists()
    assert write_shapes(TINY, out)
    assert remains.exists()
    for folder, _, _ in os.walk(remains):
        os.utime(folder, (time.time() - 7200,) * 2)
    assert write_shapes(ShapesSpec(seed=9, size=32, num_train=1, num_val=1), out, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ['set']


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


# -------------------------------------------------------------------------------------------------- the command line


def test_the_tool_writes_says_so_and_does_not_repeat_itself(tmp_path):
    """Output piped to a file must be plain lines, and a second run must be free, so that scripts can just call it."""
    arguments = [tmp_path / 'a/set', '--size', 32, '--num-train', 3, '--num-val', 2]
    first, second = run_tool(*arguments), run_tool(*arguments)
    assert first.returncode == second.returncode == 0 and first.stderr == second.stderr == ''
    assert '5 of 5 images' in first.stdout and 'wrote 3 training and 2 validation images' in first.stdout
    assert '\x1b' not in first.stdout
    assert second.stdout == f'{tmp_path / "a/set"} is already there\n'
    assert not write_shapes(TINY, tmp_path / 'a/set')  # the tool's arguments reach the package


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--size', '8'], 'size=8'),
        (['--size', 'big'], 'big'),
        (['--classes', 'disk,blob'], "'blob'"),
        (['--classes', ','], 'classes'),
        (['--num-trian', '3'], '--num-trian'),
    ],
)
def test_the_tool_refuses_bad_arguments_in_one_line(tmp_path, arguments, words, monkeypatch, capsys):
    """A traceback, or a screen of usage, hides the one word that is wrong."""
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import make_shapes

    monkeypatch.setattr(make_shapes.signal, 'signal', lambda *_: None)
    try:
        code = make_shapes.main([str(tmp_path / 'set'), *arguments])
    except SystemExit as stopped:  # argparse's own way out
        code = stopped.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith('error: ') and error.count('\n') == 1 and words in error
    assert list(tmp_path.iterdir()) == []


def test_the_tool_refuses_a_foreign_folder(tmp_path):
    """Exit code 2 and the remedy, so that a script stops before it trains on what happens to lie there."""
    (tmp_path / 'notes.txt').write_text('mine')
    done = run_tool(tmp_path)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1 and 'choose another' in done.stderr
    assert content(tmp_path) == {'notes.txt': b'mine'}


def test_the_tool_says_when_the_disk_does_not_take_it(tmp_path):
    """A full disk (here: a limit on file size, which root cannot pass either) is one line, and no half set remains."""
    done = run_tool(
        tmp_path / 'set', '--size', 64, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'error: cannot write {tmp_path / "set"}') and done.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'file').write_text('mine')
    done = run_tool(tmp_path / 'file' / 'set')
    assert done.returncode == 1 and done.stderr.startswith('error: cannot write') and done.stderr.count('\n') == 1
