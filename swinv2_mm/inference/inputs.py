"""What to predict on: pictures, folders, globs, videos and cameras, each input with outputs of its own."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from swinv2_mm.datasets.folders import pictures_in
from swinv2_mm.engine.display.names import OutputNames
from swinv2_mm.errors import UserError

_VIDEOS = ('.avi', '.flv', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv')


@dataclass(frozen=True)
class Input:
    """A picture, a video or a camera.

    Attributes:
        source: Absolute path, or the number of a camera.
        kind: ``'picture'``, ``'video'`` or ``'camera'``.
        file: Its name in the outputs: its path below the common parent of all inputs.
        picture: What is drawn, below ``pictures/``.
        map: The class map below ``maps/``: a PNG file, or the folder of a video's frames.
    """

    source: str
    kind: str
    file: str
    picture: str
    map: str


def find_inputs(given: Sequence[str | os.PathLike], out: Path) -> list[Input]:
    """List the inputs that paths, folders (with all below), globs and numbers of cameras stand for, each once.

    What earlier runs have drawn into the output folder is left out of folders and globs.

    Raises:
        UserError: One of them does not exist or holds no picture, or two would be written to one file.
    """
    cameras, written = [], [Path(os.path.abspath(out), name) for name in ('pictures', 'maps')]
    files: dict[str, None] = {}
    for name in map(os.fspath, map(str, given)):
        number = re.fullmatch(r'(?:/dev/video)?(\d+)', name)
        path = os.path.abspath(os.path.expanduser(name))
        if number and (name.startswith('/dev/') or not os.path.exists(path)):
            cameras.append(number[1])
        elif os.path.isdir(path):
            files |= dict.fromkeys(pictures_in(path, written))
        elif os.path.isfile(path):
            files[path] = None
        elif has_magic(name):
            found = sorted(os.path.abspath(each) for each in glob(os.path.expanduser(name), recursive=True))
            found = [each for each in found if os.path.isfile(each) and not {*written} & {*Path(each).parents}]
            if not found:
                raise UserError(f'{name}: no file matches (the current folder is {Path.cwd()}).')
            files |= dict.fromkeys(found)
        else:
            raise UserError(
                f'{name} does not exist (the current folder is {Path.cwd()}). Name pictures, folders, videos, or the '
                'number of a camera.'
            )
    inputs = [*_named(list(files)), *map(_camera, dict.fromkeys(cameras))]
    for kind in ('picture', 'map'):
        taken: dict[str, Input] = {}
        for each in inputs:
            other = taken.setdefault(getattr(each, kind), each)
            if other is not each:
                raise UserError(
                    f'{each.source} and {other.source} would both be written to {getattr(each, kind)}. Rename one.'
                )
    return inputs


def _named(paths: list[str]) -> Iterator[Input]:
    pictures, maps = OutputNames(paths), OutputNames(paths, maps=True)
    for path in paths:
        file, picture, place = pictures.relative(path).as_posix(), pictures[path].as_posix(), maps[path].as_posix()
        if path.lower().endswith(_VIDEOS):
            video = file if file.lower().endswith('.mp4') else f'{file}.mp4'
            yield Input(path, 'video', file, video, video)
        else:
            yield Input(path, 'picture', file, picture, place)


def _camera(number: str) -> Input:
    name = f'camera{number}'
    return Input(number, 'camera', name, f'{name}.mp4', f'{name}.mp4')
