"""Write the shapes data set, crash-safe: a folder appears complete or not at all.

The same images serve detection (COCO instances) and segmentation (semantic maps in the style of ADE20K)::

    OUT/
      images/{training,validation}/000000.png         RGB
      annotations/{training,validation}/000000.png    uint8: 0 unlabelled (never occurs), 1 background, 2.. the classes
      annotations/instances_{training,validation}.json    COCO, categories 1..K in the order of the classes
      shapes.json                                     marker: the generator and its parameters

The semantic maps follow ADE20K's numbering: read them with ``reduce_zero_label=True``. The instances are the visible
regions: polygons, or run lengths where the region has a hole. MMDetection reads both with
``LoadAnnotations(with_mask=True)``; its ``poly2mask=False`` silently ignores the run lengths.
"""

import dataclasses
import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy import ndarray

from swinv2_mm.datasets import coco, drawing
from swinv2_mm.datasets.drawing import SPLITS, ShapesSpec, render

_GENERATOR = 'swinv2_mm.datasets'
_FORMAT = 1  # raise it when the same parameters give other files


def write_shapes(
    spec: ShapesSpec, out: str | Path, force: bool = False, progress: Callable[[int, int], None] | None = None
) -> bool:
    """Write a data set.

    The files are made in a folder ``.OUT.tmp-*`` beside ``out`` and moved there in one step; any exception, also
    Ctrl-C, removes that folder.

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
        'difficulty': dataclasses.asdict(drawing.DIFFICULTY),
    }


def _files(spec: ShapesSpec) -> Iterator[str]:
    """Every file of a data set, relative to its folder."""
    yield 'shapes.json'
    for split in SPLITS:
        yield f'annotations/instances_{split}.json'
        for index in range(spec.num_images(split)):
            yield f'images/{split}/{index:06d}.png'
            yield f'annotations/{split}/{index:06d}.png'


def _to_write(spec: ShapesSpec, out: Path, force: bool) -> bool:
    """Whether ``out`` lacks the data set.

    Raises:
        FileExistsError: Something else is there that must not be replaced.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f'{out} is a file, not a folder: choose another name')
    if not out.exists() or not any(out.iterdir()):
        return True
    try:
        there = json.loads((out / 'shapes.json').read_text())
        files = set(_files(ShapesSpec(**there['parameters'])))
        if there['generator'] != _GENERATOR:
            raise ValueError('the marker of something else')
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        raise FileExistsError(
            f'{out} is not empty and holds no shapes data set: choose another folder, or empty this one yourself'
        ) from None
    present = {path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_symlink() or not path.is_dir()}
    missing, added, wanted = files - present, present - files, _marker(spec)
    if not missing and all(there.get(key) == value for key, value in wanted.items()):
        return False
    if added:
        raise FileExistsError(
            f'{out} holds another shapes data set, and files beside it ({min(added)}): move those away, or choose '
            'another folder'
        )
    changes = [
        f'{name}={value!r}, not {wanted["parameters"][name]!r}'
        for name, value in there['parameters'].items()
        if value != wanted['parameters'][name]
    ]
    found = 'made with ' + ('; '.join(changes) or 'another version of the generator')
    if missing:
        found = f'with {len(missing)} of its files missing ({min(missing)})'
    if not force:
        raise FileExistsError(
            f'{out} holds a shapes data set {found}: pass force=True (--force) to replace it, or choose another folder'
        )
    return True


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
            first = len(annotations) + 1
            annotations += [coco.annotation(shape, n, index) for n, shape in enumerate(sample.instances, first)]
            done += 1
            if progress is not None:
                progress(done, total)
        content = {
            'info': {'description': f'shapes, {split}', 'version': str(_FORMAT)},
            'licenses': [],
            'images': images,
            'annotations': annotations,
            'categories': [{'id': i, 'name': name} for i, name in enumerate(spec.classes, start=1)],
        }
        (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content, separators=(',', ':')))
    libraries = {'numpy': np.__version__, 'opencv': cv2.__version__}
    (folder / 'shapes.json').write_text(json.dumps({**_marker(spec), 'libraries': libraries}, indent=2) + '\n')


def _write_png(path: Path, image: ndarray) -> None:
    """Write a PNG. ``cv2.imwrite`` would only return False on a full disk; this raises."""
    _, data = cv2.imencode('.png', image)
    path.write_bytes(data.tobytes())


def _publish(spec: ShapesSpec, folder: Path, out: Path, force: bool) -> None:
    """Rename a finished folder to ``out``, replacing an empty folder or an older data set."""
    try:
        folder.rename(out)  # replaces an empty folder, refuses any other
    except OSError:
        if not out.is_dir() or not any(out.iterdir()):
            raise
        old = _temporary(out)
        if _to_write(spec, out, force):  # checked again: another run may have been faster
            out.rename(old)
            try:
                folder.rename(out)
            except BaseException:
                old.rename(out)
                raise
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(out: Path) -> Path:
    """A new name beside ``out``. ``tempfile.mkdtemp`` would make a folder that other users cannot read."""
    return out.with_name(f'.{out.name}.tmp-{secrets.token_hex(4)}')
