"""Pictures of a data set for eyes, read as its pipeline reads them: turned, decoded and combined in the same way."""

import os
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from mmengine.config import Config


class Pictures:
    """The images of a data set, by their paths.

    Args:
        dataset: Of mmengine, or a wrapper of such data sets.
        bgr_to_rgb: Whether an own loading transform gives BGR, see :func:`swaps_channels`.
    """

    def __init__(self, dataset: Any, bgr_to_rgb: bool = False):
        self._bgr_to_rgb = bgr_to_rgb
        self._places: dict[str, tuple[Any, int]] = {}
        for part in base_datasets(dataset):
            for index in range(len(part)):
                try:
                    path = path_in(part.get_data_info(index))
                except Exception:  # of a data set of another kind; a picture is not worth the run
                    break
                if path is not None:
                    self._places.setdefault(path, (part, index))

    @property
    def paths(self) -> list[str]:
        """The paths of all images, in the order of the data set."""
        return list(self._places)

    def __getitem__(self, path: str) -> np.ndarray:
        """Read an image: RGB, uint8, ``(H, W, 3)``. Raises what the loading raises."""
        if path not in self._places:
            import mmcv

            return for_eyes(mmcv.imread(path), bgr=True)
        return picture_of(*self.sample(path), self._bgr_to_rgb)

    def __contains__(self, path: object) -> bool:
        return path in self._places

    def sample(self, path: str) -> tuple[Any, dict]:
        """The data set that has an image, and what it knows of it."""
        dataset, index = self._places[path]
        return dataset, dataset.get_data_info(index)


def path_in(sample: Any) -> str | None:
    """The path of a sample's image, or the first of those that it is combined of; None if the sample does not say."""
    path = sample.get('img_path')
    path = next(iter(path), None) if isinstance(path, list | tuple) else path
    return os.fspath(path) if isinstance(path, str | os.PathLike) else None


def swaps_channels(cfg: Config) -> bool:
    """Whether the model of a config expects BGR from the loading, and swaps it."""
    preprocessor = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return bool(preprocessor.get('bgr_to_rgb'))


def base_datasets(dataset: Any) -> Iterator[Any]:
    """The data sets with images inside of wrappers, each once."""
    inner = getattr(dataset, 'datasets', None) or [getattr(dataset, 'dataset', None)]
    if inner[0] is None:
        if callable(getattr(dataset, 'get_data_info', None)):
            yield dataset
        return
    for part in dict.fromkeys(inner):
        yield from base_datasets(part)


def picture_of(dataset: Any, info: dict, bgr_to_rgb: bool = False) -> np.ndarray:
    """Load the image of a sample by the pipeline of its data set: RGB, uint8, ``(H, W, 3)``.

    Args:
        dataset: Its ``pipeline`` is called up to the transform that loads the image.
        info: What the data set knows of the sample; it is not changed.
        bgr_to_rgb: As of :class:`Pictures`.

    Raises:
        ValueError: The pipeline loads no image. Other errors are those of its transforms.
    """
    _, image, transforms = _load_image(dataset, info)
    return for_eyes(image, gives_bgr(transforms[0], bgr_to_rgb))


def map_of(dataset: Any, info: dict) -> np.ndarray | None:
    """Load the semantic map of a sample, ``(H, W)``, by the pipeline of its data set; None without one.

    Raises:
        As :func:`picture_of`.
    """
    if not info.get('seg_map_path'):
        return None
    results, _, transforms = _load_image(dataset, info)
    for transform in transforms[1:]:  # without those that resize or crop
        loading = getattr(transform, 'loading', transform)
        if type(loading).__name__.startswith('Load') and getattr(loading, 'with_seg', False):
            labels = transform(results).get('gt_seg_map')
            return None if labels is None else np.asarray(labels)
    return None


def _load_image(dataset: Any, info: dict) -> tuple[dict, Any, list]:
    """Call the first transforms; returns their results, the image, and the one that loaded it with those behind."""
    results: Any = deepcopy(info)
    transforms = list(getattr(getattr(dataset, 'pipeline', None), 'transforms', ()))
    for index, transform in enumerate(transforms):
        results = transform(results)
        if results is None:
            raise ValueError('its pipeline leaves it out')
        if results.get('img') is not None:
            return results, results['img'], transforms[index:]
    raise ValueError('its pipeline loads no image')


def gives_bgr(transform: Any, bgr_to_rgb: bool) -> bool:
    """Whether a transform, perhaps inside of CheckedLoading, loads BGR: mmcv's does, except by tifffile.

    Args:
        transform: Loads images.
        bgr_to_rgb: As of :class:`Pictures`.
    """
    from mmcv.transforms import LoadImageFromFile

    loading = getattr(transform, 'loading', transform)
    if isinstance(loading, LoadImageFromFile) and type(loading).transform is LoadImageFromFile.transform:
        return loading.imdecode_backend != 'tifffile'
    return bgr_to_rgb


def for_eyes(image: Any, bgr: bool) -> np.ndarray:
    """Turn a loaded image into an RGB picture.

    One channel becomes grey, two become red and green, and of more than three the first three are taken. Values from 0
    to 1 are black to white; others outside of 0 to 255 are spread linearly from the darkest pixel to the brightest.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``, of any type of numbers.
        bgr: Whether the first three channels are blue, green and red.

    Returns:
        RGB, uint8, ``(H, W, 3)``.

    Raises:
        ValueError: It has another number of axes, or no pixels.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or not image.size:
        raise ValueError(f'an array of shape {image.shape} is no picture')
    channels = image.shape[2]
    if channels == 1:
        image = image.repeat(3, axis=2)
    elif channels == 2:
        image = np.concatenate([image, np.zeros_like(image[..., :1])], axis=2)
    else:
        image = image[..., 2::-1] if bgr else image[..., :3]
    return np.ascontiguousarray(_eight_bits(image))


def _eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    image = image.astype(np.float64)
    finite = np.isfinite(image)
    image = np.where(finite, image, 0)
    low, high = (image[finite].min(), image[finite].max()) if finite.any() else (0.0, 0.0)
    if low < 0 or high > 255:
        image = (image - low) * (255 / max(high - low, 1e-12))
    elif high <= 1:
        image = image * 255
    return image.round().clip(0, 255).astype(np.uint8)
