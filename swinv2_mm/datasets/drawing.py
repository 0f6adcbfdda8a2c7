"""Draw the images of the shapes data set: overlapping shapes on smooth textures, with their visible masks."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy import ndarray

MAX_SIZE = 4096
SPLITS = ('training', 'validation')
_SUBPIXELS = 4  # per pixel and axis: 17 grey levels at a border


@dataclass(frozen=True)
class Difficulty:
    """Constants that make the data set easy or hard. The marker file records them, so that a change is noticed.

    Sizes are square roots of areas: a star of size 20 px covers as many pixels as a square of side 20.
    """

    # Enough for occlusion, few enough that a small detector's 100 proposals see mostly background.
    max_shapes: int = 3
    # Relative to the image's side, log-uniform: 26 to 77 px at 128 px, so a fifth of the shapes are COCO's "small"
    # (< 32^2) even before occlusion. With much smaller shapes a segmenter needs more than minutes on a CPU.
    min_size: float = 1 / 5
    max_size: float = 0.6
    # Below this size in pixels a star and a triangle look alike; it only matters in images under 60 px.
    min_size_px: float = 7.5
    # Share of shapes aimed at an earlier one. Uniform places alone give few overlaps and hardly any holes.
    crowding: float = 0.15
    # At most this share of a shape may lie beyond the border.
    max_outside: float = 0.2
    # Later shapes must leave this much of an earlier one: people could not recognise less either.
    min_visible_share: float = 0.25
    min_visible_px: int = 40
    # Attempts to place a shape before the image goes without it.
    tries: int = 20
    # RGB distance, in 0..1 per channel, from the background and from other shapes. It is well above the textures'
    # own spread, or a model trained from scratch for minutes would learn nothing.
    background_contrast: float = 0.4
    shape_contrast: float = 0.3
    # Standard deviations and half ranges of the textures. The background's are stronger, so that smoothness does not
    # give a shape away; its edges are soft where a shape's are sharp.
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


def _scaled(*polygons: ndarray) -> list[ndarray]:
    """An outline of an area of 1, so that size says nothing about the class."""
    area = sum(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1)) / 2 for p in polygons)
    return [p / np.sqrt(abs(area)) for p in polygons]


# A plus sign whose arms are as long as they are wide.
_CROSS = np.array(
    [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)],
    dtype=float,
)
# An outline is a list of closed polygons, filled by the even-odd rule; a hole turns the other way round.
OUTLINES = {
    'disk': _scaled(_polygon(96)),
    'square': _scaled(_polygon(4)),
    'triangle': _scaled(_polygon(3)),
    'star': _scaled(_polygon(10, (1.0, 0.42))),
    'ring': _scaled(_polygon(96), 0.55 * _polygon(96)[::-1]),
    'cross': _scaled(_CROSS),
}


@dataclass(frozen=True)
class ShapesSpec:
    """The parameters of a data set; equal specifications give equal files.

    Args:
        seed: Any integer from 0.
        size: Side of the square images, in pixels, from 32 to ``MAX_SIZE``.
        num_train: Number of training images. A larger set keeps the images of a smaller one.
        num_val: Number of validation images.
        classes: Names out of ``OUTLINES``, in the order of the labels.

    Raises:
        ValueError: A number is out of range or not an integer, or a class is unknown or listed twice.
    """

    seed: int = 0
    size: int = 128
    num_train: int = 300
    num_val: int = 100
    # Local evidence (a hole, spikes) tells these apart: a transformer learns it from scratch in minutes.
    classes: tuple[str, ...] = ('disk', 'ring', 'star')

    def __post_init__(self) -> None:
        for name, least in (('seed', 0), ('size', 32), ('num_train', 1), ('num_val', 1)):
            value, limited = getattr(self, name), name == 'size'
            if not isinstance(value, int) or value < least or (limited and value > MAX_SIZE):
                most = f' to {MAX_SIZE}' if limited else ''
                raise ValueError(f'{name}={value!r}: give an integer from {least}{most}')
        known = ', '.join(OUTLINES)
        if isinstance(self.classes, str) or not self.classes:
            raise ValueError(f'classes={self.classes!r}: give a tuple of at least one name out of {known}')
        object.__setattr__(self, 'classes', tuple(self.classes))
        for index, name in enumerate(self.classes):
            if name not in OUTLINES:
                raise ValueError(f'classes has the unknown name {name!r}: choose from {known}')
            if name in self.classes[:index]:
                raise ValueError(f'classes has {name!r} twice: give each class once')

    def num_images(self, split: str) -> int:
        return {'training': self.num_train, 'validation': self.num_val}[split]


@dataclass(frozen=True)
class Instance:
    """One shape in an image."""

    label: int  # index into the specification's classes
    mask: ndarray  # visible region, bool, (H, W)
    visible_share: float  # visible part of the whole shape, with what lies beyond the border, in (0, 1]


@dataclass(frozen=True)
class Sample:
    """An image and its annotations."""

    image: ndarray  # RGB, uint8, (H, W, 3)
    semantic: ndarray  # 1 for background, 2 + label for shapes, uint8, (H, W)
    instances: tuple[Instance, ...]  # at least one, back to front; their masks are disjoint


def render(spec: ShapesSpec, split: str, index: int) -> Sample:
    """Draw one image, a pure function of its split, its index, and the specification's seed, size and classes.

    Raises:
        ValueError: The split is none of ``SPLITS``, or the index is negative.
    """
    if split not in SPLITS:
        raise ValueError(f'split={split!r} is unknown: choose from {", ".join(SPLITS)}')
    if index < 0:
        raise ValueError(f'index={index} is negative: count from 0')
    # A spawn key per image; with seed + index, seed 1 would repeat seed 0 shifted by one image.
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
    """Choose shapes, sizes and places, back to front; enough of each shape stays visible."""
    d = DIFFICULTY
    low = max(d.min_size * spec.size, d.min_size_px)
    high = d.max_size * spec.size
    shapes: list[_Shape] = []
    label = 0
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
            remains = [other.visible & ~shape.visible for other in shapes]
            if shape.visible.sum() >= max(d.min_visible_px, (1 - d.max_outside) * size**2) and all(
                remain.sum() >= max(d.min_visible_px, d.min_visible_share * other.size**2)
                for other, remain in zip(shapes, remains, strict=True)
            ):
                for other, remain in zip(shapes, remains, strict=True):
                    other.visible = remain
                shapes.append(shape)
                break
    if not shapes:  # every image has an instance: the smallest one always fits in the middle
        shapes.append(_shape(rng, spec, label, np.full(2, spec.size / 2), low))
    return shapes


def _shape(rng: np.random.Generator, spec: ShapesSpec, label: int, center: ndarray, size: float) -> _Shape:
    """Rasterise a shape, rotated at random, without occlusion."""
    alpha = _coverage(OUTLINES[spec.classes[label]], center, size, rng.uniform(0, 2 * np.pi), spec.size)
    return _Shape(label, center, size, alpha, alpha >= 0.5)


def _coverage(polygons: list[ndarray], center: ndarray, size: float, angle: float, side: int) -> ndarray:
    """Share of each pixel inside an outline, in 0..1, ``(side, side)``."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = size * np.array([[cos, sin], [-sin, cos]])
    # OpenCV's integer coordinates are pixel centres, hence the half; shift=4 reads them in sixteenths.
    points = [np.round(((p @ turn + center) * _SUBPIXELS - 0.5) * 16).astype(np.int32) for p in polygons]
    fine = np.zeros((side * _SUBPIXELS, side * _SUBPIXELS), dtype=np.uint8)
    cv2.fillPoly(fine, points, (255,), shift=4)
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
    apart = [(ground, DIFFICULTY.background_contrast), *((other, DIFFICULTY.shape_contrast) for other in others)]
    best, best_margin = ground, -np.inf
    for _ in range(50):
        colour = rng.uniform(0.05, 0.95, 3)
        margin = min(np.linalg.norm(colour - other) - distance for other, distance in apart)
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
