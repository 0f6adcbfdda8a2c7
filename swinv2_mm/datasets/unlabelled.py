"""Pictures without labels, for self-supervised pre-training: the data set, and the two transforms of its pipeline."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from mmengine.dataset import BaseDataset
from numpy import ndarray

from swinv2_mm.datasets.folders import pictures_in
from swinv2_mm.registry import DATASETS, TRANSFORMS


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All pictures in folders and below them; nothing else is read.

    Args:
        data_root: The folder that ``data_prefix`` starts from.
        data_prefix: ``dict(img_path=...)``: a folder, or a list of folders.
        **others: As of mmengine's BaseDataset: ``pipeline``, ``indices``, ...

    Raises:
        UserError: A folder holds no picture.
    """

    METAINFO: dict = {'classes': ()}

    def __init__(self, data_root: str = '', data_prefix: dict | None = None, **others) -> None:
        prefix = dict(data_prefix or {'img_path': ''})
        folders = prefix['img_path']
        self.folders = [folders] if isinstance(folders, str) else list(folders)
        if not isinstance(folders, str):  # BaseDataset joins single paths alone
            prefix['img_path'] = os.path.commonpath(self.folders)
        self.folders = [os.path.join(data_root, folder) for folder in self.folders]
        super().__init__(data_root=data_root, data_prefix=prefix, **others)

    def load_data_list(self) -> list[dict]:
        """One entry for each picture; the order depends on names alone, so that seeds mean the same everywhere."""
        return [{'img_path': path} for folder in self.folders for path in pictures_in(folder)]


@TRANSFORMS.register_module()
class RandomResizedCrop:
    """Crop a random part of random shape, and resize it; the arguments are those of MMPretrain's transform.

    Args:
        scale: Size of the result, ``(columns, rows)``.
        crop_ratio_range: Share of the picture's area.
        aspect_ratio_range: Columns per row of the part, drawn on a logarithmic scale.
        max_attempts: A part that does not fit is drawn again; after so many times it is the largest in the middle.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        crop_ratio_range: tuple[float, float] = (0.67, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
    ) -> None:
        if not isinstance(scale, Sequence) or len(scale) != 2 or min(scale) < 1:
            raise ValueError(f'scale={scale!r} of RandomResizedCrop must be (columns, rows) in pixels, as (192, 192).')
        for name, (low, high) in {
            'crop_ratio_range': crop_ratio_range,
            'aspect_ratio_range': aspect_ratio_range,
        }.items():
            if not 0 < low <= high:
                raise ValueError(f'{name}={(low, high)} of RandomResizedCrop must be two rising numbers above 0.')
        self.scale = scale[0], scale[1]
        self.crop_ratio_range = crop_ratio_range
        self.aspect_ratio_range = aspect_ratio_range
        self.max_attempts = max_attempts

    def __call__(self, results: dict) -> dict:
        """Replace ``results['img']``, ``(rows, columns[, channels])``."""
        image = results['img']
        top, left, rows, columns = self.draw(image.shape[0], image.shape[1])
        part = image[top : top + rows, left : left + columns]
        shrinks = columns > self.scale[0] and rows > self.scale[1]
        # Bilinear interpolation looks at four pixels alone; a photo that shrinks tenfold would become noise.
        results['img'] = cv2.resize(part, self.scale, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        results['img_shape'] = results['img'].shape[:2]
        return results

    def draw(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw ``(top, left, rows, columns)`` of a part of a picture, by NumPy's global generator."""
        low, high = np.log(self.aspect_ratio_range)
        for _ in range(self.max_attempts):
            area = height * width * np.random.uniform(*self.crop_ratio_range)
            aspect = math.exp(np.random.uniform(low, high))
            columns, rows = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < columns <= width and 0 < rows <= height:
                top, left = np.random.randint(height - rows + 1), np.random.randint(width - columns + 1)
                return top, left, rows, columns
        least, most = self.aspect_ratio_range
        columns = min(width, max(round(height * most), 1))
        rows = min(height, max(round(width / least), 1))
        return (height - rows) // 2, (width - columns) // 2, rows, columns

    def __repr__(self) -> str:
        return f'{type(self).__name__}(scale={self.scale}, crop_ratio_range={self.crop_ratio_range})'


@TRANSFORMS.register_module()
class PackImages:
    """The last transform of pictures without labels: ``dict(inputs=tensor)``, ``(C, H, W)``.

    Pictures of 8 bit stay uint8. Others become float32 with the values of the file, so mean and std of the preprocessor
    are in the same units.
    """

    def __call__(self, results: dict) -> dict[str, torch.Tensor]:
        return {'inputs': to_tensor(results['img'])}


def to_tensor(image: ndarray) -> torch.Tensor:
    """``(H, W)`` or ``(H, W, C)`` to ``(C, H, W)``, in uint8 or float32."""
    image = image[..., None] if image.ndim == 2 else image
    image = image if image.dtype == np.uint8 else image.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
