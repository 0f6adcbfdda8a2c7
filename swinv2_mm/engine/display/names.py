"""Names of what a run writes for each image: unique, relative, below one folder, and the same in all processes."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from swinv2_mm.engine.config.parts import is_local

# Pictures that OpenCV writes as they are and that viewers open; others become PNG files.
_PICTURES = ('.bmp', '.jpe', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
_MAP = '.png'

Place = tuple[str, ...]  # folders and name of an image


class OutputNames:
    """Maps the path of each image of a run to a path below the output folder.

    The folders below the common parent of all images are kept. Of two images whose maps would have the same name, both
    keep their whole names, as ``x.jpg.png``.

    Args:
        paths: All images that the run reads, in all processes.
        maps: The outputs are PNG files, rather than pictures in the format of the image.
    """

    def __init__(self, paths: Iterable[str], maps: bool = False):
        self._maps = maps
        places = {path: _place(path) for path in dict.fromkeys(map(str, paths))}
        self._common = _common([place[:-1] for place in places.values()])
        self._inner = {path: place[self._common :] for path, place in places.items()}
        names = dict(_unique(sorted(set(self._inner.values())), maps))
        self._names = {path: Path(*names[place]) for path, place in self._inner.items()}

    def relative(self, path: str) -> Path:
        """The path of an announced image below the common parent of all."""
        return Path(*self._inner[str(path)])

    def __getitem__(self, path: str) -> Path:
        """The relative path; an image that was not announced gets its whole path, made relative."""
        name = self._names.get(str(path))
        if name is None:
            place = _place(str(path))
            name = Path(*place[:-1], place[-1] + _MAP if self._maps else _preferred(place, self._maps))
        return name


def _place(path: str) -> Place:
    """The parts of an absolute path or URL, of which none leads upwards."""
    if is_local(path):
        above, dots, rest = path.rpartition(f'..{os.sep}')
        if dots:  # behind a link, the folder above is another one than the text says
            path = os.path.join(os.path.realpath(above + dots), rest)
        path = os.path.abspath(path)
    drive, path = os.path.splitdrive(path)
    parts = [drive.rstrip(':').replace(os.sep, '_'), *path.replace('://', '/').split('/' if '/' in path else os.sep)]
    return tuple('_' if part == '..' else part for part in parts if part not in ('', '.')) or ('_',)


def _common(places: list[Place]) -> int:
    """How many parts all places start with."""
    first, last = min(places, default=()), max(places, default=())
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))  # noqa: B905


def _preferred(place: Place, maps: bool) -> str:
    stem, suffix = os.path.splitext(place[-1])
    if maps:
        return stem + _MAP
    return place[-1] if suffix.lower() in _PICTURES else place[-1] + _MAP


def _unique(places: list[Place], maps: bool) -> Iterator[tuple[Place, Place]]:
    preferred = {place: (*place[:-1], _preferred(place, maps)) for place in places}
    count = Counter(preferred.values())
    folders = {place[:end] for place in places for end in range(len(place))}
    taken = folders | {name for name in preferred.values() if count[name] == 1}
    for place in places:
        name = preferred[place]
        if count[name] > 1 or name in folders:
            name = next(other for other in _longer(place) if other not in taken)
            taken.add(name)
        yield place, name


def _longer(place: Place) -> Iterator[Place]:
    *folder, name = place
    whole = name if name.endswith(_MAP) else name + _MAP
    yield (*folder, whole)
    number = 2
    while True:
        yield (*folder, f'{whole.removesuffix(_MAP)}-{number}{_MAP}')
        number += 1
