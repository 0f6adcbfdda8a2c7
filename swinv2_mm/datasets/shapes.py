"""The shapes data set: generated images for training a detector or a segmenter without downloading anything.

Overlapping shapes on smooth textures, as COCO instances and as ADE20K-style semantic maps of the same images.
:func:`render` makes one image, a pure function of the specification; :func:`write_shapes` writes a whole set::

    OUT/
      images/{training,validation}/000000.png         RGB
      annotations/{training,validation}/000000.png    uint8: 0 unlabelled (never occurs), 1 background, 2.. the classes
      annotations/instances_{training,validation}.json    COCO, categories 1..K in the order of the classes
      shapes.json                                     marker: what this folder is and the parameters that made it

The semantic maps follow ADE20K's numbering: read them with ``reduce_zero_label=True``. The instances are the visible
regions: an outline where polygons can say it, run lengths where the region has a hole. MMDetection reads both with
``LoadAnnotations(with_mask=True)``; its ``poly2mask=False`` silently ignores the run lengths.
"""

import dataclasses
import glob
import json
import operator
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy import ndarray

__all__ = [
    'DIFFICULTY',
    'OUTLINES',
    'SPLITS',
    'Difficulty',
    'Instance',
    'Sample',
    'ShapesSpec',
    'render',
    'write_shapes',
]


# ---------------------------------------------------------------------------------------------- what can be tuned

MAX_SIZE = 4096


@dataclass(frozen=True)
class Difficulty:
    """What makes the data set easy or hard. The marker records it, so that a set made with other values is noticed.

    Sizes are square roots of areas: a star of size 20 px covers as many pixels as a square of side 20.
    """

    # Enough for occlusion, few enough that a small detector's 100 proposals see mostly background.
    max_shapes: int = 3
    # Of the image's side, log-uniform: at 128 px from 26 to 77 px, so a fifth of the shapes are COCO's "small" (< 32^2)
    # before others cover them. With much smaller ones a segmenter needs more than minutes on a CPU.
    min_size: float = 1 / 5
    max_size: float = 0.6
    # Below this, in pixels, a star and a triangle look alike; it counts only in images under 60 px.
    min_size_px: float = 7.5
    # Share of shapes aimed at an earlier one. Uniform places alone give few overlaps, and hardly any holes.
    crowding: float = 0.15
    # At most this share of a shape may lie beyond the border.
    max_outside: float = 0.2
    # What later shapes must leave of an earlier one: less could not be recognised, by people either.
    min_visible_share: float = 0.25
    min_visible_px: int = 40
    # Tries to place a shape before the image goes without it.
    tries: int = 20
    # RGB distance, in 0..1 per channel, from the background and from other shapes: well above the textures' own
    # spread, or a model trained from scratch for minutes learns nothing.
    background_contrast: float = 0.4
    shape_contrast: float = 0.3
    # Standard deviations and half ranges of the textures. The background's are the stronger: smooth parts of
    # it must not give a shape away, and its edges are soft where a shape's are sharp.
    background_noise: float = 0.05
    background_slope: float = 0.12
    shape_noise: float = 0.03
    shape_slope: float = 0.10
    grain: float = 0.02


DIFFICULTY = Difficulty()


def _polygon(corners: int, radii: tuple[float, ...] = (1.0,)) -> ndarray:
    """Corners at equal angles around the origin, their radii taken in turn, ``(V, 2)``."""
    angle = 2 * np.pi * np.arange(corners) / corners
    radius = np.resize(radii, corners)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _cross() -> ndarray:
    """A plus sign whose arms are as long as they are wide, ``(12, 2)``."""
    return np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)],
        dtype=float,
    )


# Each outline is a list of closed polygons, filled by the even-odd rule; a hole turns the other way round.
OUTLINES: dict[str, Callable[[], list[ndarray]]] = {
    'disk': lambda: [_polygon(96)],
    'square': lambda: [_polygon(4)],
    'triangle': lambda: [_polygon(3)],
    'star': lambda: [_polygon(10, (1.0, 0.42))],
    'ring': lambda: [_polygon(96), 0.55 * _polygon(96)[::-1]],
    'cross': lambda: [_cross()],
}

SPLITS = ('training', 'validation')
_GENERATOR = 'swinv2_mm.datasets'
_FORMAT = 1  # raise it when the same parameters give other files
_SAMPLES = 4  # sub-pixels per pixel and axis: 17 grey levels at a border


# -------------------------------------------------------------------------------------------------- the parameters


@dataclass(frozen=True)
class ShapesSpec:
    """The parameters of a data set; equal specifications give equal files.

    Args:
        seed: Any integer from 0.
        size: Side of the square images, in pixels, at least 32.
        num_train: Number of training images, at least 1. More images leave the earlier ones as they were.
        num_val: Number of validation images, at least 1.
        classes: Names out of ``OUTLINES``, in the order of the labels.

    Raises:
        ValueError: A number is too small or no integer, or a class is unknown or given twice.
    """

    seed: int = 0
    size: int = 128
    num_train: int = 300
    num_val: int = 100
    # Told apart by local evidence (a hole, spikes): what a transformer learns from scratch in minutes.
    classes: tuple[str, ...] = ('disk', 'ring', 'star')

    def __post_init__(self) -> None:
        for name, least in (('seed', 0), ('size', 32), ('num_train', 1), ('num_val', 1)):
            try:
                value = operator.index(getattr(self, name))
            except TypeError:
                raise ValueError(f'{name}={getattr(self, name)!r} is not an integer: give one from {least}') from None
            if value < least:
                raise ValueError(f'{name}={value} is too small: give at least {least}')
            if name == 'size' and value > MAX_SIZE:  # drawn at four times the size
                raise ValueError(f'size={value} is too large: give at most {MAX_SIZE}')
            object.__setattr__(self, name, value)
        known = ', '.join(OUTLINES)
        if isinstance(self.classes, str):
            raise ValueError(f'classes={self.classes!r} is one string: give a tuple of names out of {known}')
        object.__setattr__(self, 'classes', tuple(self.classes))
        if not self.classes:
            raise ValueError(f'classes={self.classes!r} is empty: give at least one of {known}')
        for index, name in enumerate(self.classes):
            if name not in OUTLINES:
                raise ValueError(f'classes has the unknown name {name!r}: choose from {known}')
            if name in self.classes[:index]:
                raise ValueError(f'classes has {name!r} twice: give each class once')

    def num_images(self, split: str) -> int:
        """Number of images in a split."""
        return {'training': self.num_train, 'validation': self.num_val}[split]


@dataclass(frozen=True)
class Instance:
    """A shape as it is seen.

    Attributes:
        label: Index into the specification's classes.
        mask: Visible region, bool, ``(H, W)``.
        visible_share: Visible part of the whole shape, which counts what lies beyond the border, in (0, 1].
    """

    label: int
    mask: ndarray
    visible_share: float


@dataclass(frozen=True)
class Sample:
    """An image and its annotations.

    Attributes:
        image: RGB, uint8, ``(H, W, 3)``.
        semantic: 1 for background, ``2 + label`` for shapes, uint8, ``(H, W)``.
        instances: At least one, back to front; their masks are disjoint.
    """

    image: ndarray
    semantic: ndarray
    instances: tuple[Instance, ...]


# -------------------------------------------------------------------------------------------------------- one image


def render(spec: ShapesSpec, split: str, index: int) -> Sample:
    """Make one image.

    The image depends on the split, its index and the specification's seed, size and classes: never on other images,
    nor on how many there are.

    Args:
        spec: The parameters.
        split: One of ``SPLITS``.
        index: Number of the image in its split, from 0.

    Raises:
        ValueError: The split is unknown or the index is negative.
    """
    if split not in SPLITS:
        raise ValueError(f'split={split!r} is unknown: choose from {", ".join(SPLITS)}')
    if index < 0:
        raise ValueError(f'index={index} is negative: count from 0')
    # A spawn key per image instead of seed + index: there, seed 1 would repeat seed 0 shifted by one image.
    rng = np.random.default_rng(np.random.SeedSequence(spec.seed, spawn_key=(SPLITS.index(split), index)))
    shapes = _place(rng, spec)
    semantic = np.ones((spec.size, spec.size), dtype=np.uint8)
    for shape in shapes:
        semantic[shape.visible] = 2 + shape.label
    instances = tuple(Instance(s.label, s.visible, min(1.0, float(s.visible.sum() / s.size**2))) for s in shapes)
    return Sample(_paint(rng, spec.size, shapes), semantic, instances)


@dataclass
class _Shape:
    """A placed shape: ``center`` is ``(x, y)`` in pixels, ``alpha`` the covered share of each pixel, ``(H, W)``."""

    label: int
    center: ndarray
    size: float
    alpha: ndarray
    visible: ndarray


def _place(rng: np.random.Generator, spec: ShapesSpec) -> list[_Shape]:
    """Choose shapes, sizes and places, back to front, such that enough of each stays visible."""
    d = DIFFICULTY
    low = max(d.min_size * spec.size, d.min_size_px)
    high = d.max_size * spec.size
    shapes: list[_Shape] = []
    for _ in range(rng.integers(1, d.max_shapes, endpoint=True)):
        # Drawn once for all tries: a class that fits less often (a star reaches further) must not become rarer.
        label = int(rng.integers(len(spec.classes)))
        for _ in range(d.tries):
            size = float(np.exp(rng.uniform(np.log(low), np.log(high))))
            center = rng.uniform(0, spec.size, 2)
            if shapes and rng.random() < d.crowding:
                other = shapes[rng.integers(len(shapes))]
                angle = rng.uniform(0, 2 * np.pi)
                distance = rng.random() * (size + other.size) / 2
                center = other.center + distance * np.array([np.cos(angle), np.sin(angle)])
            shape = _shape(rng, spec, label, center, size)
            whole = shape.visible.sum()
            remains = [other.visible & ~shape.visible for other in shapes]
            if whole >= max(d.min_visible_px, (1 - d.max_outside) * size**2) and all(
                remain.sum() >= max(d.min_visible_px, d.min_visible_share * other.size**2)
                for other, remain in zip(shapes, remains, strict=True)
            ):
                for other, remain in zip(shapes, remains, strict=True):
                    other.visible = remain
                shapes.append(shape)
                break
    if not shapes:  # every image has an instance: in the middle the smallest one always fits
        shapes.append(_shape(rng, spec, label, np.full(2, spec.size / 2), low))
    return shapes


def _shape(rng: np.random.Generator, spec: ShapesSpec, label: int, center: ndarray, size: float) -> _Shape:
    """Rasterise a shape, turned at random, as if nothing covered it."""
    alpha = _coverage(_outline(spec.classes[label]), center, size, rng.uniform(0, 2 * np.pi), spec.size)
    return _Shape(label, center, size, alpha, alpha >= 0.5)


@cache
def _outline(name: str) -> list[ndarray]:
    """A class's polygons, scaled to cover an area of 1, so that size tells nothing about the class."""
    polygons = OUTLINES[name]()
    area = sum(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1)) / 2 for p in polygons)
    return [p / np.sqrt(abs(area)) for p in polygons]


def _coverage(polygons: list[ndarray], center: ndarray, size: float, angle: float, side: int) -> ndarray:
    """Share of each pixel inside an outline, in 0..1, ``(side, side)``."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = size * np.array([[cos, sin], [-sin, cos]])
    # OpenCV's integer coordinates are pixel centres, hence the half; shift=4 reads them in sixteenths.
    points = [np.round(((p @ turn + center) * _SAMPLES - 0.5) * 16).astype(np.int32) for p in polygons]
    fine = np.zeros((side * _SAMPLES, side * _SAMPLES), dtype=np.uint8)
    cv2.fillPoly(fine, points, 255, shift=4)
    return cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _paint(rng: np.random.Generator, side: int, shapes: list[_Shape]) -> ndarray:
    """Colour a scene, back to front, RGB, uint8, ``(side, side, 3)``. No colour depends on a label."""
    d = DIFFICULTY
    ground = rng.uniform(0.25, 0.75) + rng.uniform(-0.1, 0.1, 3)
    # Mostly grey noise, some of it coloured: a background as colourful as the shapes would hide the dull ones.
    noise = _noise(rng, side, 4, 1) + 0.5 * _noise(rng, side, 12, 1) + 0.5 * _noise(rng, side, 6, 3)
    image = ground + d.background_noise * noise
    image += d.background_slope * _slope(rng, side, np.full(2, side / 2), side)
    colours: list[ndarray] = []
    for shape in shapes:
        colour = _colour(rng, ground, colours)
        colours.append(colour)
        skin = colour + d.shape_noise * _noise(rng, side, 8, 1)
        skin = skin + d.shape_slope * _slope(rng, side, shape.center, shape.size)
        image += shape.alpha[..., None] * (skin - image)
    image += d.grain * rng.standard_normal((side, side, 3))
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)


def _colour(rng: np.random.Generator, ground: ndarray, others: list[ndarray]) -> ndarray:
    """A random colour that stands out from the background and from the colours already used, ``(3,)``."""
    best, best_margin = None, -np.inf
    for _ in range(50):
        colour = rng.uniform(0.05, 0.95, 3)
        margin = min(
            [np.linalg.norm(colour - ground) - DIFFICULTY.background_contrast]
            + [np.linalg.norm(colour - other) - DIFFICULTY.shape_contrast for other in others]
        )
        if margin >= 0:
            return colour
        if margin > best_margin:
            best, best_margin = colour, margin
    return best


def _noise(rng: np.random.Generator, side: int, cells: int, channels: int) -> ndarray:
    """Smooth noise of about unit deviation with ``cells`` bumps per side, ``(side, side, channels)``."""
    coarse = rng.standard_normal((cells, cells, channels))
    fine = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return fine.reshape(side, side, channels)  # OpenCV drops a last axis of 1


def _slope(rng: np.random.Generator, side: int, center: ndarray, width: float) -> ndarray:
    """A ramp in a random direction, -1..1 over ``width`` pixels around ``center``, ``(side, side, 1)``."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = np.arange(side) + 0.5
    x, y = axis[None, :] - center[0], axis[:, None] - center[1]
    return np.clip((x * np.cos(angle) + y * np.sin(angle)) / (width / 2), -1, 1)[..., None]


# ------------------------------------------------------------------------------------------------ COCO annotations


def _segmentation(mask: ndarray) -> list[list[float]] | dict[str, Any]:
    """A mask as COCO writes it, exactly: polygons, or run lengths if the mask has a hole.

    The polygons follow the sides of the pixels, not their centres as ``cv2.findContours`` does: pycocotools fills them
    back to the very same mask, however small it is. Coordinates are floats because MMDetection scales polygons in
    place, which would round integers down.
    """
    # In a mask enlarged twice, each pixel on the contour tells which corner of the original pixel it lies at.
    twice = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, hierarchy = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if (hierarchy[0, :, 3] >= 0).any():  # a contour with a parent is a hole
        return _run_lengths(mask)
    polygons = []
    for contour in contours:
        corners = (contour[:, 0] + 1) // 2
        corners = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
        back, ahead = corners - np.roll(corners, 1, axis=0), np.roll(corners, -1, axis=0) - corners
        turns = back[:, 0] * ahead[:, 1] != back[:, 1] * ahead[:, 0]
        polygons.append(corners[turns].ravel().astype(float).tolist())
    return polygons


def _run_lengths(mask: ndarray) -> dict[str, Any]:
    """COCO's uncompressed run lengths: down the columns, alternately outside and inside, outside first."""
    flat = mask.ravel(order='F')
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {'size': list(mask.shape), 'counts': [0] + counts if flat[0] else counts}


def _box(mask: ndarray) -> list[float]:
    """A mask's bounding box, ``[x, y, width, height]`` in pixels."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = columns[0], rows[0]
    return [float(x), float(y), float(columns[-1] - x + 1), float(rows[-1] - y + 1)]


# ------------------------------------------------------------------------------------------------------- the writer


def write_shapes(
    spec: ShapesSpec, out: str | Path, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Write a data set, whole or not at all.

    The files are made in a folder ``.OUT.tmp-*`` beside ``out`` and moved there in one step; any exception, so
    Ctrl-C too, removes that folder. What a killed run left behind is removed by a later one, an hour later at least.

    Args:
        spec: The parameters.
        out: The folder. It may be absent, empty, or hold a data set that this function wrote.
        force: Replace a data set made with other parameters, or one with files missing.
        progress: Called after every image with the number of images made and to make.

    Returns:
        True if the data set was written, False if it was there already.

    Raises:
        FileExistsError: ``out`` holds something else, or another data set and not ``force``; nothing was changed.
        OSError: The files could not be written.
    """
    out = Path(out).expanduser().resolve()
    if not _to_write(spec, out, force):
        return False
    if out == Path.cwd() or out in Path.cwd().parents:
        raise FileExistsError(f'{out} is the current folder, which cannot be replaced: choose a folder inside it')
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    temporary = _temporary(out)
    try:
        _fill(spec, temporary, progress)
        _publish(spec, temporary, out, force)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return True


def _marker(spec: ShapesSpec) -> dict[str, Any]:
    """The content of ``shapes.json`` that two equal data sets share."""
    return {
        'generator': _GENERATOR,
        'format': _FORMAT,
        'parameters': {**dataclasses.asdict(spec), 'classes': list(spec.classes)},
        'difficulty': dataclasses.asdict(DIFFICULTY),
    }


def _files(spec: ShapesSpec) -> Iterator[str]:
    """Every file of a data set, relative to its folder."""
    yield 'shapes.json'
    for split in SPLITS:
        yield f'annotations/instances_{split}.json'
        for index in range(spec.num_images(split)):
            yield f'images/{split}/{index:06d}.png'
            yield f'annotations/{split}/{index:06d}.png'


def _find(spec: ShapesSpec, out: Path) -> str:
    """What ``out`` holds: 'nothing', 'same', or in words what is different about the data set there.

    Raises:
        FileExistsError: It holds files that :func:`write_shapes` did not write.
    """
    if not out.exists():
        return 'nothing'
    if not out.is_dir():
        raise FileExistsError(f'{out} is a file, not a folder: choose another name')
    if not any(out.iterdir()):
        return 'nothing'
    foreign = f'{out} is not empty and holds no shapes data set: choose another folder, or empty this one yourself'
    try:
        there = json.loads((out / 'shapes.json').read_text())
        if there['generator'] != _GENERATOR:
            raise FileExistsError(foreign)
        other = ShapesSpec(**there['parameters'])
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        raise FileExistsError(foreign) from None
    present = {path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_symlink() or not path.is_dir()}
    missing = set(_files(other)) - present
    wanted = _marker(spec)
    if not missing and all(there.get(key) == value for key, value in wanted.items()):
        return 'same'
    added = sorted(present - set(_files(other)))
    if added:
        raise FileExistsError(
            f'{out} holds another shapes data set, and files beside it ({added[0]}): move those '
            'away, or choose another folder'
        )
    if missing:
        return f'with {len(missing)} of its files missing ({min(missing)})'
    changes = [
        f'{name}={value!r}, not {wanted["parameters"][name]!r}'
        for name, value in there['parameters'].items()
        if value != wanted['parameters'][name]
    ]
    return 'made with ' + ('; '.join(changes) or 'another version of the generator')


def _to_write(spec: ShapesSpec, out: Path, force: bool) -> bool:
    """Whether ``out`` lacks the data set, and may be given it.

    Raises:
        FileExistsError: It may not.
    """
    found = _find(spec, out)
    if found not in ('nothing', 'same') and not force:
        raise FileExistsError(
            f'{out} holds a shapes data set {found}: pass force=True (--force) to replace it, or choose another folder'
        )
    return found != 'same'


def _fill(spec: ShapesSpec, folder: Path, progress: Callable[[int, int], None] | None) -> None:
    """Write every file of a data set into a new folder, the marker last."""
    folder.mkdir()
    done, total = 0, spec.num_train + spec.num_val
    for split in SPLITS:
        for kind in ('images', 'annotations'):
            (folder / kind / split).mkdir(parents=True)
        images, annotations = [], []
        for index in range(spec.num_images(split)):
            name = f'{index:06d}.png'
            sample = render(spec, split, index)
            _write_png(folder / 'images' / split / name, sample.image[..., ::-1])  # OpenCV's order is BGR
            _write_png(folder / 'annotations' / split / name, sample.semantic)
            images.append({'id': index, 'file_name': name, 'height': spec.size, 'width': spec.size})
            for instance in sample.instances:
                # From 1: COCOeval takes the id 0 for "matched with nothing".
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': index,
                        'category_id': instance.label + 1,
                        'iscrowd': 0,
                        'area': float(instance.mask.sum()),
                        'bbox': _box(instance.mask),
                        'segmentation': _segmentation(instance.mask),
                    }
                )
            done += 1
            if progress is not None:
                progress(done, total)
        coco = {
            'info': {'description': f'shapes, {split}', 'version': str(_FORMAT)},
            'licenses': [],
            'images': images,
            'annotations': annotations,
            'categories': [{'id': i, 'name': name} for i, name in enumerate(spec.classes, start=1)],
        }
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(coco, separators=(',', ':')))
    libraries = {'numpy': np.__version__, 'opencv': cv2.__version__}
    (folder / 'shapes.json').write_text(json.dumps({**_marker(spec), 'libraries': libraries}, indent=2) + '\n')


def _write_png(path: Path, image: ndarray) -> None:
    """Write a PNG. Not ``cv2.imwrite``: it answers a full disk with False, which is easy to miss."""
    _, data = cv2.imencode('.png', image)
    path.write_bytes(data.tobytes())


def _publish(spec: ShapesSpec, folder: Path, out: Path, force: bool) -> None:
    """Give a finished folder its name, taking the place of an empty folder or of an older data set."""
    try:
        folder.rename(out)  # replaces an empty folder, refuses any other
        return
    except OSError:
        if not out.is_dir() or not any(out.iterdir()):
            raise
    if not _to_write(spec, out, force):  # asked again: another run may have been faster
        shutil.rmtree(folder, ignore_errors=True)
        return
    old = _temporary(out)
    out.rename(old)
    try:
        folder.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _temporary(out: Path) -> Path:
    """A new name beside ``out``. Not tempfile.mkdtemp: it closes its folders to other users."""
    return out.with_name(f'.{out.name}.tmp-{secrets.token_hex(4)}')


def _sweep(out: Path, hours: float = 1) -> None:
    """Remove temporary folders in which no run has made a file for some time.

    Age, not a process number: the other run may be on another machine that shares the disk.
    """
    for folder in out.parent.glob(f'.{glob.escape(out.name)}.tmp-' + 8 * '[0-9a-f]'):
        try:
            newest = max(os.stat(path).st_mtime for path, _, _ in os.walk(folder))
        except (OSError, ValueError):  # its run has just finished
            continue
        if time.time() - newest > 3600 * hours:
            shutil.rmtree(folder, ignore_errors=True)
