"""Pictures without labels, for self-supervised pre-training: the data set, and the two transforms of its pipeline."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.structures import BaseDataElement
from numpy import ndarray

from swinv2_mm.datasets.folders import PICTURES, files_in, none_found
from swinv2_mm.errors import UserError
from swinv2_mm.registry import DATASETS, TRANSFORMS

_REMEDY = 'Set data_root and data_prefix of the data set to folders with pictures'


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All pictures in folders and below them; nothing else is read.

    Hidden files and folders are left out; links to folders are followed once. A picture that several folders share, one
    inside of the other, counts once.

    Args:
        data_root: The folder that ``data_prefix`` starts from.
        data_prefix: ``dict(img_path=...)`` as in MMSegmentation, or ``dict(img=...)`` as in MMDetection: a folder, or a
            list of folders.
        img_suffix: Endings of the files, in small or capital letters: one, or several. Files that OpenCV does not read
            need a loading transform of theirs in the pipeline.
        **others: As of mmengine's BaseDataset: ``pipeline``, ``indices``, ...

    Attributes:
        left_out: The files with other endings.

    Raises:
        ValueError: ``data_prefix`` has another key.
        UserError: A folder does not exist, or holds no picture.
    """

    METAINFO: dict = {'classes': ()}

    def __init__(
        self,
        data_root: str = '',
        data_prefix: dict | None = None,
        img_suffix: str | Sequence[str] = PICTURES,
        **others: Any,
    ) -> None:
        data_root, prefix = data_root or '', dict(data_prefix or {'img_path': ''})
        if len(prefix) != 1 or not {*prefix} <= {'img', 'img_path'}:
            raise ValueError(f"data_prefix={prefix} of UnlabelledImages: name the folders as dict(img_path='images').")
        ((name, folders),) = prefix.items()
        single = isinstance(folders, str)
        self.folders = [os.path.join(data_root, folder) for folder in ([folders] if single else folders)]
        self.suffixes = tuple(each.lower() for each in ([img_suffix] if isinstance(img_suffix, str) else img_suffix))
        self.left_out: list[str] = []
        if not single:  # BaseDataset joins single paths alone
            prefix = {name: os.path.commonpath(map(os.path.abspath, self.folders))}
        super().__init__(data_root=data_root, data_prefix=prefix, **others)

    def load_data_list(self) -> list[dict]:
        """One entry for each picture; the order depends on names alone, so that seeds mean the same everywhere."""
        pictures: dict[str, None] = {}
        self.left_out = []
        for folder in self.folders:
            if not os.path.isdir(folder):
                raise UserError(
                    f"{folder or 'data_root'} is no folder on this machine's disks (the current folder is "
                    f'{os.getcwd()}). {_REMEDY}.'
                )
            found, others = files_in(folder, self.suffixes)
            if not found:
                raise UserError(
                    f'{none_found(folder, self.suffixes, others)} {_REMEDY}, and img_suffix, if they have other '
                    'endings, to those.'
                )
            pictures |= dict.fromkeys(found)
            self.left_out += others
        return [{'img_path': path} for path in pictures]


@TRANSFORMS.register_module()
class RandomResizedCrop:
    """Crop a random part of random shape, and resize it; the arguments are those of MMPretrain's transform.

    The parts are those of torchvision's transform, with which Microsoft's code pre-trains. That, too, averages over all
    pixels when it shrinks a picture: bilinear interpolation of OpenCV looks at four of them, and a photograph that
    shrinks tenfold would become noise.

    Args:
        scale: Size of the result, ``(columns, rows)``. Smaller parts are enlarged.
        crop_ratio_range: Share of the picture's area, up to 1.
        aspect_ratio_range: Columns per row of the part, drawn on a logarithmic scale.
        max_attempts: A part that does not fit is drawn again; after so many times it is the largest in the middle.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(
        self,
        scale: tuple[int, int],
        crop_ratio_range: tuple[float, float] = (0.67, 1.0),
        aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
        max_attempts: int = 10,
    ) -> None:
        numbers = isinstance(scale, Sequence) and len(scale) == 2 and all(isinstance(side, int) for side in scale)
        if not numbers or min(scale) < 1:
            raise ValueError(f'scale={scale!r} of RandomResizedCrop must be (columns, rows) in pixels, as (192, 192).')
        ranges = {'crop_ratio_range': (crop_ratio_range, 1), 'aspect_ratio_range': (aspect_ratio_range, math.inf)}
        for name, ((low, high), most) in ranges.items():
            if not 0 < low <= high <= most:
                limit = '' if most == math.inf else f', up to {most}'
                raise ValueError(
                    f'{name}={(low, high)} of RandomResizedCrop must be two rising numbers above 0{limit}.'
                )
        self.scale = scale[0], scale[1]
        self.crop_ratio_range = crop_ratio_range
        self.aspect_ratio_range = aspect_ratio_range
        self.max_attempts = max_attempts

    def __call__(self, results: dict) -> dict:
        """Replace ``results['img']``, ``(rows, columns[, channels])`` of any number of channels."""
        image = results['img']
        top, left, rows, columns = self.draw(image.shape[0], image.shape[1])
        results['img'] = resized(image[top : top + rows, left : left + columns], self.scale)
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


def resized(image: ndarray, scale: tuple[int, int]) -> ndarray:
    """Resize ``(H, W[, C])`` to ``scale``, (columns, rows); types that OpenCV does not resize become float32."""
    if image.dtype.name not in ('uint8', 'uint16', 'int16', 'float32', 'float64'):
        image = image.astype(np.float32)
    shrinks = image.shape[1] >= scale[0] and image.shape[0] >= scale[1]  # else OpenCV would repeat pixels
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    if image.ndim == 2 or image.shape[2] <= 4:  # the most that OpenCV averages
        return cv2.resize(image, scale, interpolation=method).reshape(*scale[::-1], *image.shape[2:])
    groups = [image[..., first : first + 4] for first in range(0, image.shape[2], 4)]
    return np.concatenate([resized(group, scale) for group in groups], axis=2)


@TRANSFORMS.register_module()
class PackImages:
    """The last transform of pictures without labels: what mmengine's ImgDataPreprocessor takes.

    Pictures of 8 bit stay uint8. Others become float32 with the values of the file, so mean and std of the preprocessor
    are in the same units.
    """

    def __call__(self, results: dict) -> dict[str, Any]:
        """Return ``inputs``, ``(C, H, W)``, and ``data_samples`` with the path, by which reports name a picture."""
        names = {key: results[key] for key in ('img_path', 'ori_shape', 'img_shape') if key in results}
        return {'inputs': to_tensor(results['img']), 'data_samples': BaseDataElement(metainfo=names)}

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


def to_tensor(image: ndarray) -> torch.Tensor:
    """``(H, W)`` or ``(H, W, C)`` to ``(C, H, W)``, in uint8 or float32."""
    image = image[..., None] if image.ndim == 2 else image
    image = image if image.dtype == np.uint8 else image.astype(np.float32)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
