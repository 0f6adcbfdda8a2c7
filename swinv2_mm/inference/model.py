"""A trained model that predicts: built from its config, filled completely, with the pipeline of its test."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, DefaultScope

from swinv2_mm.engine.config import apply_options, check_framework, load_config
from swinv2_mm.engine.config.parts import datasets_of, initializers
from swinv2_mm.engine.config.text import config_of_text
from swinv2_mm.engine.diagnosis.corrupt_data import check_image
from swinv2_mm.engine.display.loading import for_eyes, gives_bgr, swaps_channels
from swinv2_mm.engine.recipe.operators import widen_operators
from swinv2_mm.engine.recipe.precision import PRECISIONS, best_dtype, keep_boxes_in_float32
from swinv2_mm.engine.recipe.window_size import set_window_size
from swinv2_mm.engine.saving.matching import match_windows, misfits
from swinv2_mm.engine.saving.reading import open_checkpoint
from swinv2_mm.errors import UserError


def read_model(
    checkpoint: str | Path, config: str | Path | None, options: dict[str, Any] | None
) -> tuple[Config, dict[str, Any]]:
    """Read a checkpoint and the config of its run, as data.

    Args:
        checkpoint: A file.
        config: None for the one that the checkpoint holds.
        options: Dotted keys and values to merge into the config.

    Raises:
        UserError: One of them is missing, unreadable, or of neither framework.
    """
    content = open_checkpoint(str(checkpoint), 'predict')
    if content is None:
        raise UserError(f'{checkpoint} is no file of this machine. Download it first.')
    source = str(config or checkpoint)
    if config is not None:
        cfg = load_config(config, options)
    else:
        text = (content.get('meta') or {}).get('cfg')
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{checkpoint} does not hold the config of its run. Pass the config in front of it.')
        cfg = config_of_text(text, source)
    if cfg.get('default_scope') not in ('mmdet', 'mmseg') or not cfg.get('model'):
        raise UserError(f'{source} describes no model of MMDetection or MMSegmentation (default_scope, model).')
    if config is None:
        check_framework(cfg, source)
        if options:
            apply_options(cfg, options, source)
    return cfg, content


class Model:
    """A detector or a segmentor in evaluation mode.

    Args:
        cfg: Its config.
        checkpoint: What :func:`read_model` read.
        source: The path of the checkpoint, for messages.
        device: As of torch; None for the best one.
        amp: One of :data:`~swinv2_mm.engine.recipe.precision.PRECISIONS`; None computes in float32.
        window_size: Another window, as ``SwinTransformerV2.set_window_size`` takes it.

    Raises:
        UserError: The checkpoint does not fill the model, or one of the arguments does not fit.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: dict[str, Any],
        source: str | Path,
        device: str | None = None,
        amp: str | None = None,
        window_size: int | Sequence[int] | None = None,
    ):
        self.scope = cfg.default_scope
        self.device = _usable(device or get_device())
        with self.in_scope():
            self.classes, self.palette = _metainfo(cfg, checkpoint, source)
            self._loading, self._preparing = _pipelines(cfg)
            self._bgr = gives_bgr(self._loading[-1], swaps_channels(cfg))
            model_cfg = deepcopy(cfg.model)
            for _, _, part in initializers(model_cfg):
                part['init_cfg'] = None  # the checkpoint fills the model; the ImageNet weights may be gone
            model = revert_sync_batchnorm(MODELS.build(model_cfg))
        state = checkpoint.get('state_dict', checkpoint)
        faults = misfits(state, model.state_dict())
        if faults:
            raise UserError(f'{source} does not fit this config: {faults}. It belongs to another, or is a backbone.')
        match_windows(model, checkpoint, str(source))
        model.load_state_dict({key.removeprefix('module.'): value for key, value in state.items()}, strict=False)
        if window_size is not None:
            set_window_size(model, window_size)
        self._dtype = _dtype(amp, self.device.type)
        if self._dtype != torch.float32:
            keep_boxes_in_float32(model)
            widen_operators()
        self.model: Any = model.to(self.device).eval()
        self.task = _task(self.model, self.scope)

    @contextmanager
    def in_scope(self) -> Iterator[None]:
        """Look names up in the registries of the framework."""
        import_module(self.scope)
        with DefaultScope.overwrite_default_scope(self.scope):
            yield

    def load(self, path: str) -> dict[str, Any]:
        """Load a picture by the transforms of the test that do so, which turn it by its EXIF orientation.

        Raises:
            Exception: What decoders raise; see :func:`~swinv2_mm.engine.diagnosis.corrupt_data.reason`.
        """
        results: dict[str, Any] = {'img_path': path, 'img_id': 0}
        for transform in self._loading:
            results = transform(results)
        check_image(results)
        return results

    def from_array(self, frame: np.ndarray) -> dict[str, Any]:
        """What :meth:`load` would return for a frame of OpenCV: BGR, uint8, ``(H, W, 3)``."""
        import cv2
        from mmcv.transforms import LoadImageFromFile

        loading = self._loading[-1]
        if len(self._loading) > 1 or not isinstance(loading, LoadImageFromFile):
            raise UserError(
                f'videos: pictures are loaded by {type(loading).__name__}, and a frame is no file. Save the frames as '
                'pictures, and name their folder.'
            )
        if loading.color_type == 'grayscale':
            frame = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        return cut({'img_path': None, 'img_id': 0}, frame.astype(np.float32) if loading.to_float32 else frame)

    def picture(self, loaded: dict[str, Any]) -> np.ndarray:
        """What was loaded as a picture for eyes: RGB, uint8, ``(H, W, 3)``."""
        return for_eyes(loaded['img'], self._bgr)

    def prepare(self, loaded: dict[str, Any]) -> dict[str, Any]:
        """Call the other transforms of the test on what was loaded, which stays as it is."""
        results = dict(loaded)
        with self.in_scope():
            for transform in self._preparing:
                results = transform(results)
        return results

    def predict(self, prepared: Sequence[dict[str, Any]]) -> list[Any]:
        """Predict on pictures of one shape in one batch; returns a data sample of the framework for each.

        Raises:
            UserError: They need more memory than there is.
        """
        data = {key: [each[key] for each in prepared] for key in ('inputs', 'data_samples')}
        half = self._dtype != torch.float32
        precision = torch.autocast(self.device.type, self._dtype) if half else nullcontext()
        with self.in_scope(), torch.no_grad(), precision:
            try:
                return self.model.test_step(data)
            except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU has no class for it
                if 'out of memory' not in str(error) and "can't allocate memory" not in str(error):
                    raise
                raise UserError(
                    'The memory does not suffice. Pass --tile (with a size, as 1024) for large pictures, a smaller '
                    f'--batch-size, or --amp: {str(error).splitlines()[0]}'
                ) from error


def cut(loaded: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
    """What loading would have given if ``image``, ``(H, W)`` or ``(H, W, C)``, were the whole picture."""
    return {**loaded, 'img': np.ascontiguousarray(image), 'img_shape': image.shape[:2], 'ori_shape': image.shape[:2]}


def _usable(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        return device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # of names, builds without CUDA, drivers
        reason = ' '.join(str(error).split())[:160]
        raise UserError(
            f'--device {name} cannot be used here: {reason}. As in --device cpu, cuda or cuda:1.'
        ) from error


def _dtype(amp: str | None, device: str) -> torch.dtype:
    asked = PRECISIONS[amp] if amp else 'float32'
    return best_dtype(device) if asked == 'auto' else getattr(torch, asked)


def _dataset(cfg: Config) -> dict[str, Any]:
    return next((part for _, part in datasets_of(cfg.get('test_dataloader'), '')), {})


def _metainfo(cfg: Config, checkpoint: dict, source: str | Path) -> tuple[list[str], list[tuple[int, int, int]]]:
    """Names and colours of the classes: of the checkpoint, else of the config's data set, else of its kind."""
    dataset, meta = _dataset(cfg), checkpoint.get('meta') or {}
    kind = DATASETS.get(dataset['type']) if isinstance(dataset.get('type'), str) else None
    kinds = getattr(kind, 'METAINFO', {})
    places = [meta.get('dataset_meta'), dataset.get('metainfo'), kinds]
    found = [{str(key).lower(): value for key, value in (place or {}).items()} for place in places]
    classes = next((place['classes'] for place in found if place.get('classes')), None)
    if classes is None:
        raise UserError(
            f'neither {source} nor its config names the classes. Pass --cfg-options '
            "\"test_dataloader.dataset.metainfo.classes=('first','second')\"."
        )
    names = [classes] if isinstance(classes, str) else [str(each) for each in classes]
    palettes = (place.get('palette') for place in found)
    # CocoDataset gives the 80 colours of COCO to data sets of other classes.
    palette = next((p for p in palettes if isinstance(p, list | tuple) and len(p) == len(names)), None)
    return names, [tuple(map(int, colour)) for colour in palette or _hues(len(names))]


def _hues(number: int) -> list[tuple[int, int, int]]:
    """Colours that differ, the first ones most."""
    from colorsys import hsv_to_rgb

    hues = [hsv_to_rgb(0.02 + index * 0.618034 % 1, 0.8, 0.95) for index in range(number)]
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in hues]


def _pipelines(cfg: Config) -> tuple[list[Any], list[Any]]:
    """The transforms that load a picture, and those behind; without annotations, which there are none of."""
    pipeline = _dataset(cfg).get('pipeline') or cfg.get('test_pipeline') or []
    names = [str(part.get('type')).split('.')[-1] for part in pipeline]
    kept = [index for index, name in enumerate(names) if not (name.startswith('Load') and 'Annotations' in name)]
    loads = next((place for place, index in enumerate(kept) if names[index].startswith('Load')), None)
    if loads is None:
        raise UserError('test_dataloader.dataset.pipeline: no transform of it, as LoadImageFromFile, loads a picture.')
    transforms = [TRANSFORMS.build(deepcopy(pipeline[index])) for index in kept]
    return transforms[: loads + 1], transforms[loads + 1 :]


def _task(model: Any, scope: str) -> str:
    if scope == 'mmseg':
        return 'semantic'
    head = getattr(model, 'panoptic_fusion_head', None)
    if head is not None and (head.test_cfg or {}).get('panoptic_on', True):
        return 'panoptic'
    return 'instance' if head is not None or model.with_mask else 'detection'
