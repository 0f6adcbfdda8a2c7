"""Pictures and videos of random colours."""

from pathlib import Path

import cv2
import numpy as np


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def write_video(path: Path, frames: int = 5, size: tuple = (48, 64), fps: float = 10.0, codec: str = 'mp4v') -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size[::-1])
    for seed in range(frames):
        writer.write(noise(*size, 3, seed=seed))
    writer.release()
    return path
