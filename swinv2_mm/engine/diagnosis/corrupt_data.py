"""Corrupt data: each sample is checked when it is read; a corrupt one stops the run by its file name, or is skipped.

MMDetection and MMSegmentation answer with an exception in a data worker, a loss of NaN, an assertion on the device, or
a wrong mask without a message. What they drop harmlessly, such as boxes without area, is left to them.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS, Registry
from mmengine.registry import TRANSFORMS as ROOT_TRANSFORMS
from mmengine.runner import Runner

from swinv2_mm.engine.config.form import policy_of
from swinv2_mm.engine.mmengine_internals import set_dataloader, unbuilt_dataloaders, watched_builds
from swinv2_mm.errors import UserError
from swinv2_mm.registry import TRANSFORMS


class DamagedSample(UserError):
    """A sample that cannot be used; the message names the file."""

    def __init__(self, text: str) -> None:
        # An exception in a data worker is raised again in the main process, with the traceback in front of its text.
        super().__init__(text.rsplit(f'{type(self).__qualname__}: ', 1)[-1].strip())


class _Damage(Exception):
    """A message on what is wrong with a sample."""


@TRANSFORMS.register_module()
class CheckedLoading:
    """Load a part of a sample by another transform, and check the result.

    Args:
        loading: Config of a transform that loads an image or annotations.
        on_damage: ``'stop'``, or ``'skip'``: the data set then draws another sample, with the same random numbers as
            augmentation, so that a resumed run draws the same. Each skipped file is logged once.
        num_classes: The number of labels that a semantic map may have, besides the ignored one; None for any.
        ignore_index: The ignored label.

    Raises:
        DamagedSample: A sample is corrupt and not skipped.
    """

    def __init__(
        self, loading: dict, on_damage: str = 'stop', num_classes: int | None = None, ignore_index: int = 255
    ) -> None:
        self.loading = ROOT_TRANSFORMS.build(loading)
        self.skip = on_damage == 'skip'
        self.labels = num_classes, ignore_index
        # A bit per file, by hash, which the data workers share; they end with every epoch.
        self._logged = torch.zeros(2**20 if self.skip else 0, dtype=torch.bool).share_memory_()

    def __call__(self, results: dict) -> dict | None:
        file, without_image = self._file(results), 'img' not in results
        try:
            if getattr(self.loading, 'with_mask', False):
                check_raw_masks(results)
            results = self.loading(results)
            if results is not None:
                if without_image:
                    check_image(results)
                check_annotations(results, *self.labels)
            return results
        except Exception as error:  # whatever decoders raise
            problem = f'{file} cannot be used: {reason(error)}.'
            if not self.skip:
                setting = ''
                if isinstance(error, AssertionError | AttributeError | KeyError | TypeError):
                    setting = ' If every sample fails like this, a setting of the data set or its pipeline is wrong.'
                raise DamagedSample(
                    f'{problem}{setting} Repair it, or take it out of the data set. Training can go on with other '
                    'samples, by --cfg-options bad_data=skip; an evaluation cannot.'
                ) from error
        place = crc32(file.encode()) % len(self._logged)
        if not self._logged[place]:
            self._logged[place] = True
            # Processes other than the first show errors alone.
            print_log(f'{problem} It is skipped; {int(self._logged.sum())} so far.', 'current', logging.ERROR)
        return None

    def _file(self, results: dict) -> str:
        image = str(results.get('img_path') or f'image {results.get("img_id", results.get("sample_idx"))}')
        of_map = getattr(self.loading, 'with_seg', False) and results.get('seg_map_path')
        return f'{results["seg_map_path"]} (of {image})' if of_map else image


def reason(error: Exception) -> str:
    """Why an image or its annotations cannot be read, in words."""
    text = ' '.join(str(error).split()).rstrip('.')
    if isinstance(error, FileNotFoundError):
        return 'there is no such file'
    if 'failed to load image' in text or 'buf.empty()' in text:  # of mmcv and OpenCV
        return 'it is empty, incomplete or no image'
    return text if isinstance(error, _Damage) else f'{type(error).__name__}: {text}'


def check_raw_masks(results: dict) -> None:
    """Check masks before they are decoded: decoding trusts the size that they state."""
    height, width = results['ori_shape']
    for index, instance in enumerate(results.get('instances', ()), 1):
        mask, whose = instance.get('mask'), f'the mask of object {index}'
        if isinstance(mask, dict):
            rows, columns = mask.get('size') or (height, width)
            if (rows, columns) != (height, width):
                raise _Damage(f'{whose} is for {columns} x {rows} pixels, the image has {width} x {height}')
            counts = mask.get('counts')
            if isinstance(counts, list) and sum(counts) != height * width:
                raise _Damage(f'the run lengths of {whose} add up to {sum(counts)} pixels, not to {height * width}')
        elif not isinstance(mask, list):
            raise _Damage(f'{whose} is missing' if mask is None else f'{whose} is a {type(mask).__name__}')
        elif not all(np.isfinite(polygon).all() for polygon in mask):
            raise _Damage(f'{whose} has a corner that is not a finite number')


def check_image(results: dict) -> None:
    """Check that a loaded image is complete, finite, and of the size that its annotations state."""
    image = results.get('img')
    if not isinstance(image, np.ndarray):
        return
    if image.dtype.kind == 'f' and not np.isfinite(image).all():
        raise _Damage('it has pixels that are not finite')
    height, width = image.shape[:2]
    said = results.get('height', height), results.get('width', width)
    if said != (height, width):
        turned = '; its EXIF orientation may turn it' if said == (width, height) else ''
        raise _Damage(f'it has {width} x {height} pixels, its annotations are for {said[1]} x {said[0]}{turned}')
    path = Path(str(results.get('img_path')))
    if path.is_file():
        check_end(path)


def check_end(path: Path) -> None:
    """Raise OSError if a JPEG file is incomplete: OpenCV 4.10 fills a missing rest with grey."""
    with path.open('rb') as file:
        start = file.read(2)
        file.seek(-2, 2)
        ends = file.read() == b'\xff\xd9'
    if start == b'\xff\xd8' and not ends:
        from PIL import Image

        with Image.open(path) as image:  # it is incomplete, or something else follows the image
            image.load()


def check_annotations(results: dict, num_classes: int | None, ignore_index: int) -> None:
    """Check loaded boxes, masks and semantic maps against the image."""
    if 'ori_shape' not in results:
        return  # without an image, there is nothing to compare them with
    height, width = results['ori_shape']
    boxes = getattr(results.get('gt_bboxes'), 'tensor', None)
    if boxes is not None and boxes.shape[-1] == 4 and 'gt_ignore_flags' in results:
        kept = ~torch.from_numpy(results['gt_ignore_flags'])
        x1, y1, x2, y2 = boxes.unbind(1)
        # Written so that NaN is bad.
        good = (x1 < x2) & (y1 < y2) & (x1 < width) & (y1 < height) & (x2 > 0) & (y2 > 0) & boxes.isfinite().all(1)
        for x1, y1, x2, y2 in boxes[kept & ~good].tolist():
            raise _Damage(
                f'the box from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}) covers nothing of the image, which has '
                f'{width} x {height} pixels'
            )
    masks = getattr(results.get('gt_masks'), 'masks', None)
    if isinstance(masks, np.ndarray) and masks.size and masks.max() > 1:
        raise _Damage('a run-length mask is too short for the image')
    labels = results.get('gt_seg_map')
    if not isinstance(labels, np.ndarray):
        return
    if labels.shape != (height, width):
        size = ' x '.join(map(str, [*labels.shape[1::-1], *labels.shape[2:]]))
        raise _Damage(f'the map is {size}, the image {width} x {height}')
    beyond = labels[(labels >= num_classes) & (labels != ignore_index)] if num_classes else labels[:0]
    if beyond.size:
        raise _Damage(
            f'it has {beyond.size} pixels with labels from {beyond.min()} to {beyond.max()}, and the model has '
            f'{num_classes} classes, counted from 0'
        )


def watch_loading(runner: Runner) -> None:
    """Make the data sets that a runner has not built yet check the samples that they load.

    The runner's config, which is saved in the work dir, stays as it is: tools that read it for inference expect the
    frameworks' own loading.
    """
    cfg = deepcopy(runner.cfg)
    splits = list(unbuilt_dataloaders(runner))
    check_samples(cfg, splits)
    for split in splits:
        set_dataloader(runner, split, cfg[f'{split}_dataloader'])


def check_samples(cfg: Config, splits: Sequence[str]) -> None:
    """Make the data sets of these splits check the samples that they load, as ``bad_data`` says.

    Args:
        cfg: Edited in place; see :func:`~swinv2_mm.engine.config.form.policy_of`.
        splits: Out of ``'train'``, ``'val'``, ``'test'``.
    """
    policy, model = policy_of(cfg), cfg.get('model') or {}
    if policy is None:
        return
    heads = model.get('module', model).get('decode_head') or {}  # the module is that of test-time augmentation
    head = heads[-1] if isinstance(heads, list) else heads
    labels = {'num_classes': head.get('num_classes'), 'ignore_index': head.get('ignore_index', 255)}
    for split in splits:
        loader = cfg[f'{split}_dataloader']
        loader.dataset = _checked(loader.dataset, {'on_damage': policy if split == 'train' else 'stop', **labels})


def _checked(node: Any, settings: dict) -> Any:
    """Wrap every loading transform in nested data sets and pipelines."""
    if isinstance(node, list | tuple):
        return type(node)(_checked(item, settings) for item in node)
    if not isinstance(node, dict):
        return node
    kind = node.get('type')
    if getattr(kind, '__name__', str(kind)).split('.')[-1].startswith('Load'):
        return {'type': 'swinv2_mm.CheckedLoading', 'loading': node, **settings}
    return type(node)((key, _checked(value, settings)) for key, value in node.items())


@contextmanager
def named_annotations() -> Iterator[None]:
    """Name the annotations of a data set that cannot read them, or finds no sample in them.

    Raises:
        UserError: In place of the data set's ValueError.
    """
    with watched_builds(_name_annotations):
        yield


def _name_annotations(error: Exception, registry: Registry, chain: list, given: dict) -> None:
    """Read the annotations again, to see what is wrong with them."""
    if registry.name != DATASETS.name or not isinstance(error, ValueError) or chain[-1].get('lazy_init'):
        return
    try:
        dataset = registry.build(dict(chain[-1], lazy_init=True))
    except Exception:  # not the annotations are at fault
        return
    if not isinstance(dataset, BaseDataset):
        return
    source = dataset.ann_file or ', '.join(map(str, dataset.data_prefix.values()))
    try:
        dataset.data_list = dataset.load_data_list()
    except ValueError:
        raise UserError(f'{source} cannot be read as a list of annotations: {error}.') from error
    if not dataset.filter_data():  # then mmengine asks NumPy to concatenate nothing
        classes = ', '.join(map(str, dataset.metainfo.get('classes') or ())) or 'none'
        raise UserError(
            f'{source} gives not a single image: it lists none, or filter_cfg={dataset.filter_cfg} leaves out all '
            f'of them, such as those without an object of the classes {classes}.'
        ) from error
