"""Videos: frame by frame from a file or a camera, and into a file that appears complete or not at all."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from swinv2_mm.checkpoints.files import replacing
from swinv2_mm.errors import UserError
from swinv2_mm.inference.inputs import Input, find_inputs


def opened(each: Input) -> Any:
    """OpenCV's reader of a video or a camera."""
    import cv2

    return cv2.VideoCapture(int(each.source) if each.kind == 'camera' else each.source)


def frames(reader: Any) -> Iterator[np.ndarray]:
    """The frames that are left: BGR, uint8, ``(H, W, 3)``."""
    while True:
        some, frame = reader.read()
        if not some:
            return
        yield frame


def length(each: Input) -> int:
    """How many frames a video says that it has; 0 of a camera."""
    import cv2

    return max(0, int(opened(each).get(cv2.CAP_PROP_FRAME_COUNT))) if each.kind == 'video' else 0


@contextmanager
def video_file(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a video, MPEG-4, crash-safe; yields a function that takes an RGB frame, uint8, ``(H, W, 3)``.

    Raises:
        OSError: It cannot be written, or has no frame.
    """
    import cv2

    number, writer = 0, None
    with replacing(path) as partial:
        growing = partial.with_suffix('.mp4')  # by which OpenCV knows the format

        def add(frame: np.ndarray) -> None:
            nonlocal writer, number
            if writer is None:
                writer = cv2.VideoWriter(str(growing), cv2.VideoWriter.fourcc(*'mp4v'), fps, frame.shape[1::-1])
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
            number += 1

        try:
            yield add
            if writer is not None:
                writer.release()
            written = cv2.VideoCapture(str(growing)).get(cv2.CAP_PROP_FRAME_COUNT)
            if not number or int(written) != number:  # OpenCV reports no error
                raise OSError(f'{int(written)} of {number} frames are in it (is the disk full?)')
            os.replace(growing, partial)
        finally:
            growing.unlink(missing_ok=True)


def make_video(folder: str | os.PathLike, path: Path, side: int, fps: float, hold: int) -> int:
    """Make a video of the pictures of a folder, each drifting a little; frames have the shape of the first.

    Args:
        folder: With all below.
        path: A file that ends in ``.mp4``.
        side: The longer side in pixels.
        fps: Frames per second.
        hold: Frames of each picture.

    Returns:
        How many frames it has.

    Raises:
        UserError: The folder has no picture, one is corrupt, or the file cannot be written.
    """
    import cv2

    inputs, size = find_inputs([folder], path.parent), None
    if path.suffix != '.mp4':
        raise UserError(f'{path}: a video is written as .mp4.')
    try:
        with video_file(path, fps) as add:
            for each in inputs:
                image = cv2.imread(each.source)
                if image is None:
                    raise UserError(f'{each.source} cannot be read as a picture.')
                given = np.array(image.shape[1::-1])
                if size is None:
                    size = (given * side / given.max()).round().astype(int) // 2 * 2
                scale = 1.1 * (size / given).max()  # the picture covers the frame
                for number in range(hold):
                    moves = (size - scale * given) * (number + 0.5) / hold
                    matrix = np.array([[scale, 0, moves[0]], [0, scale, moves[1]]])
                    add(cv2.warpAffine(image, matrix, size.tolist())[..., ::-1])
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror or error}.') from error
    return hold * len(inputs)
