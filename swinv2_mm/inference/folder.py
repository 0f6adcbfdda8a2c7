"""The folder of predictions: each file appears complete or not at all, and what an earlier run finished is kept."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.errors import UserError, listed
from swinv2_mm.inference.inputs import Input
from swinv2_mm.inference.videos import video_file

# A line for the settings and one for each finished input, from which an interrupted run goes on.
_JOURNAL = '.predict.jsonl'


class OutputFolder:
    """Where predictions are written.

    Args:
        path: It is made if it is missing.
        settings: What the predictions depend on. Those of an earlier run with others are not mixed with new ones.
        force: Replace what is there.

    Raises:
        UserError: It cannot be written to, or holds predictions with other settings.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any], force: bool = False):
        self.path = Path(path).expanduser()
        self._force = force
        self._done: dict[str, dict] = {}  # by the name of the input
        self._journal = self.path / _JOURNAL
        with self._named_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lines = [] if force else [*_lines(self._journal)]
            if len(lines) > 1 and lines[0] != settings:
                differing = [name for name, value in settings.items() if lines[0].get(name) != value]
                raise UserError(
                    f'{self.path} holds predictions with another {" and ".join(differing)}. Pass another --out, or '
                    '--force to replace them.'
                )
            self._done = {line['file']: line for line in lines[1:]}
            with replacing(self._journal) as partial:  # without a line that was cut off
                partial.write_text(''.join(f'{json.dumps(line)}\n' for line in [settings, *self._done.values()]))

    def kept(self, inputs: Sequence[Input], pictures: bool, maps: bool) -> dict[str, list[dict]]:
        """What an earlier run wrote for inputs that have not changed since, by their names.

        Args:
            inputs: All inputs of this run.
            pictures: Whether each has to have a picture, or a video.
            maps: Whether each has to have a map.

        Raises:
            UserError: A file of another origin is in the place of an output.
        """
        kept = {}
        for each in inputs:
            wanted = [self.path / 'pictures' / each.picture] * pictures + [self.path / 'maps' / each.map] * maps
            done = self._done.get(each.file)
            same = done is not None and done['source'] == each.source and each.kind != 'camera'
            drawn = done is not None and all(entry['picture'] for entry in done['entries'])
            whole = (drawn or not pictures) and all(file.exists() for file in wanted)
            if same and done['state'] == _state(each) and whole:
                kept[each.file] = done['entries']
            elif not same and not self._force and (there := [file for file in wanted if file.exists()]):
                of = f', of {done["source"]}' if done else ''
                raise UserError(
                    f'{there[0]} exists{of}, and {each.source} would replace it. Pass another --out, or --force.'
                )
        return kept

    def add(self, each: Input, entries: list[dict]) -> None:
        """Note that an input is finished; ``entries`` are what ``predictions.json`` will say of it."""
        line = {'file': each.file, 'source': each.source, 'state': _state(each), 'entries': entries}
        with self._named_errors(self._journal), self._journal.open('a') as journal:
            journal.write(f'{json.dumps(line)}\n')

    def write_picture(self, name: str, image: np.ndarray) -> str:
        """Write an RGB picture, uint8, ``(H, W, 3)``; returns its path below the folder."""
        import cv2

        file = self.path / 'pictures' / name
        _, coded = cv2.imencode(file.suffix, image[..., ::-1])
        with self._named_errors(file), replacing(file) as partial:
            partial.write_bytes(coded.tobytes())
        return f'pictures/{name}'

    def write_map(self, name: str, labels: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> str:
        """Write class indices, uint8 or uint16, ``(H, W)``, as a PNG file, the former with colours."""
        from PIL import Image

        image = Image.fromarray(labels)
        if labels.dtype == np.uint8:
            image.putpalette([value for colour in palette for value in colour])
        file = self.path / 'maps' / name
        with self._named_errors(file), replacing(file) as partial:
            image.save(partial, format='PNG')
        return f'maps/{name}'

    @contextmanager
    def video(self, name: str, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
        """Write a video, as :func:`~swinv2_mm.inference.videos.video_file`."""
        file = self.path / 'pictures' / name
        with self._named_errors(file), video_file(file, fps) as add:
            yield add

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file."""
        file = self.path / name
        with self._named_errors(file), replacing(file) as partial:
            partial.write_text(json.dumps(content, allow_nan=False))

    def write_report(self, inputs: Sequence[Input]) -> None:
        """Write ``report.html``, the page about what ``predictions.json`` holds."""
        from swinv2_mm.engine.display.gallery import write_prediction_page

        with self._named_errors(self.path / 'report.html'):
            write_prediction_page(self.path, {each.file: each.source for each in inputs if each.kind != 'camera'})

    @contextmanager
    def _named_errors(self, file: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f'--out: {file} cannot be written: {reason}. Pass a folder that can be.') from error


def coco_results(content: dict[str, Any]) -> tuple[list[dict], dict[str, list]]:
    """Turn what ``predictions.json`` holds into COCO's format of results, and the data set that they belong to.

    Pictures and categories are numbered from 1, in the order of ``predictions.json``.
    """
    results, images = [], []
    for number, image in enumerate(content['images'], 1):
        of_video = {'frame': image['frame']} if 'frame' in image else {}
        size = {'width': image['width'], 'height': image['height']}
        images.append({'id': number, 'file_name': image['file'], **size, **of_video})
        for record in image['predictions']:
            values = {name: value for name, value in record.items() if name != 'label'}
            results.append({'image_id': number, 'category_id': record['label'] + 1, **values})
    categories = [{'id': number, 'name': name} for number, name in enumerate(content['classes'], 1)]
    return results, {'images': images, 'annotations': [], 'categories': categories}


def _lines(path: Path) -> Iterator[dict]:
    """The lines of a journal up to one that was cut off."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _state(each: Input) -> list[int] | None:
    """What changes with the content of a file; None for a camera, whose pictures are always others."""
    if each.kind == 'camera':
        return None
    found = os.stat(each.source)
    return [found.st_size, found.st_mtime_ns]


def passed_over(failed: dict[str, str]) -> str:
    """Name the inputs that could not be read, each with its reason."""
    return listed([f'{file} ({why})' for file, why in failed.items()], 10)
