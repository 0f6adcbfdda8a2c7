"""The weights that a run starts from are there, readable, and those of the model; or it says that there are none."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from swinv2_mm.checkpoints.convert import recognise
from swinv2_mm.checkpoints.files import weights_in
from swinv2_mm.checkpoints.geometry import PRETRAINED_KEY, told_windows
from swinv2_mm.checkpoints.load import pairs, plain
from swinv2_mm.engine.checks.preflight import is_local
from swinv2_mm.engine.recipe.pretrained import Pretrained
from swinv2_mm.engine.saving.matching import misfits
from swinv2_mm.engine.saving.reading import read_checkpoint
from swinv2_mm.errors import UserError
from swinv2_mm.registry import MODELS


def check_checkpoint(path: str, name: str = '') -> dict | None:
    """Read a checkpoint for what may be wrong with it.

    Args:
        path: A file; a URL or the name in a model zoo is left to the loader.
        name: The option or key of the config that named it, for the message.

    Returns:
        The checkpoint, its tensors mapped; None for one that is not a local file.

    Raises:
        UserError: It is missing, damaged, or wants to run code.
    """
    if not is_local(path):
        return None
    file = Path(path).expanduser()
    if not file.is_file():
        folder = file if file.is_dir() else file.parent
        found = sorted([*folder.glob('*.pth'), *folder.glob('*.safetensors')]) if folder.is_dir() else []
        raise UserError(
            f'{f"{name}: " if name else ""}checkpoint {path} {"is a folder" if file.is_dir() else "does not exist"} '
            f'(the current folder is {Path.cwd()}).{f" There is {found[-1]}." if found else ""}'
        )
    checkpoint = read_checkpoint(file)
    weights = checkpoint.get('state_dict', checkpoint)
    if not isinstance(weights, dict) or not all(isinstance(key, str) for key in weights):
        raise UserError(f'{f"{name}: " if name else ""}{path} is no checkpoint: what it holds are no named weights.')
    return checkpoint


def check_pretrained(cfg: Config) -> None:
    """Check the files that the model's ``init_cfg`` and the config's ``load_from`` start from.

    Raises:
        UserError: One is missing, damaged, wants to run code, or is for another backbone.
    """
    for key, init_cfg, module in _pretrained(cfg.get('model'), 'model'):
        if cfg.get('resume') and init_cfg.type in ('swinv2_mm.Pretrained', Pretrained):
            continue  # see skip_pretrained
        path = init_cfg.get('checkpoint')
        if not path:
            raise UserError(
                f'{key}=dict(type={init_cfg.type!r}) names no file; pass --cfg-options {key}.checkpoint=/path/to/it, '
                f'or set {key}=None to start from random weights.'
            )
        if init_cfg.type in ('swinv2_mm.Pretrained', Pretrained):
            arguments = {name: value for name, value in init_cfg.items() if name != 'type'}
            try:
                _fit(module, Pretrained(**arguments))
            except UserError as error:
                raise UserError(f'{key}: {error} Or set {key}=None to start from random weights.') from None
            continue
        checkpoint = check_checkpoint(path, f'{key}.checkpoint')
        if checkpoint is not None and module.get('type') == 'swinv2_mm.SwinTransformerV2':
            _check_backbone(module, checkpoint, init_cfg.get('prefix'), f'{key}.checkpoint={path}')
    if cfg.get('load_from') and not cfg.get('resume'):
        checkpoint = check_checkpoint(cfg.load_from, 'load_from')
        if checkpoint is not None and 'backbone' in (cfg.get('model') or {}):
            _refuse_backbone(checkpoint, cfg.load_from)


def skip_pretrained(model: nn.Module) -> None:
    """Have a model that is filled from a checkpoint not fetch the ImageNet weights first, which may be gone."""
    for module in model.modules():
        if hasattr(module, 'windows_given'):
            module.init_cfg = None


def _fit(module: dict, initializer: Pretrained) -> None:
    """Check that a checkpoint fits the backbone.

    Raises:
        UserError: It does not.
    """
    if module.get('type') != 'swinv2_mm.SwinTransformerV2':
        return  # loading will say so
    try:
        with torch.device('meta'):
            backbone = MODELS.build({**module, 'init_cfg': None})
    except (TypeError, ValueError):
        return  # a wrong argument: building the model will say so
    initializer.check(backbone)


def _refuse_backbone(checkpoint: dict, path: str) -> None:
    """Refuse a backbone where a whole model is expected; mmengine would warn, and load nothing.

    Raises:
        UserError: It is one.
    """
    try:
        _, prefix = recognise(weights_in(checkpoint)[0])
    except UserError:
        return  # a model without SwinV2 weights, or with several
    if prefix in ('', 'module.', 'encoder.', 'swinv2.'):
        raise UserError(
            f'load_from={path} is a backbone, not a whole model. Pass --cfg-options load_from=None '
            f'model.backbone.init_cfg.type=swinv2_mm.Pretrained model.backbone.init_cfg.checkpoint={path} instead.'
        )


def _check_backbone(module: dict, checkpoint: dict, prefix: str | None, name: str) -> None:
    """Check that a file fills the backbone; mmengine loads what fits, warns, and leaves the rest random.

    Raises:
        UserError: Tensors are missing or have another shape, or the windows are not those of the file; the output
            norms may be missing, since image classification has none.
    """
    try:
        with torch.device('meta'):
            backbone = MODELS.build({**module, 'init_cfg': None})
    except (TypeError, ValueError):
        return  # a wrong argument: building the model will say so
    windows = backbone.pretrained_window_sizes
    loaded = checkpoint.get('state_dict', checkpoint)
    if prefix:
        start = prefix.rstrip('.') + '.'
        loaded = {key.removeprefix(start): tensor for key, tensor in loaded.items() if key.startswith(start)}
    told = pairs((checkpoint.get('meta') or {}).get('pretrained_window_sizes'), len(windows))
    if PRETRAINED_KEY in loaded:  # mmengine's loader hands them to the backbone
        told = told_windows(PRETRAINED_KEY, loaded[PRETRAINED_KEY])[: len(windows)] if backbone.windows_given else None
    if told is not None and told != windows:
        raise UserError(
            f'{name} was trained for pretrained_window_sizes={plain(told)}; the backbone has {plain(windows)}. Set '
            f'{name.partition(".init_cfg")[0]}.pretrained_window_sizes to that.'
        )
    wanted = backbone.state_dict()
    wanted = {key: tensor for key, tensor in wanted.items() if not key.startswith('norm')}
    faults = misfits(loaded, wanted)
    if not faults:
        return
    if any(str(key).startswith('backbone.') for key in loaded):
        remedy = (
            f"It is a whole model's: pass --cfg-options {name.rpartition('.checkpoint=')[0]}.prefix=backbone along."
        )
    elif 'of another shape' in faults:
        remedy = 'It is of another size: compare arch, or embed_dims and depths.'
    else:
        kind = name.replace('.checkpoint=', '.type=swinv2_mm.Pretrained checkpoint=').split(' checkpoint=')[0]
        remedy = f'Files of other code bases are converted on the fly with {kind}, or by tools/convert_ckpt.py.'
    raise UserError(f'{name} does not fit the backbone: {faults}. {remedy}')


def tell_input_size(cfg: Config) -> None:
    """Tell every ``swinv2_mm.Pretrained`` the size of the images, for what its log says about padding."""
    size = input_size(cfg)
    for _, init_cfg, _ in _pretrained(cfg.get('model'), 'model'):
        if size is not None and init_cfg.type in ('swinv2_mm.Pretrained', Pretrained):
            init_cfg.setdefault('input_size', size)


def input_size(cfg: Config) -> tuple[int, int] | None:
    """``(rows, columns)`` that the training pipeline ends in; the largest of several, None if it does not say."""
    fixed = ((cfg.get('model') or {}).get('data_preprocessor') or {}).get('size')
    if fixed:
        return tuple(fixed)
    node = cfg.get('train_dataloader') or {}
    while 'pipeline' not in node and isinstance(node.get('dataset'), dict):
        node = node['dataset']
    size = None
    for transform in node.get('pipeline') or []:
        crop, scale = transform.get('crop_size'), transform.get('scale') or transform.get('scales')
        if crop and transform.get('crop_type', 'absolute') == 'absolute':
            size = (crop, crop) if isinstance(crop, int) else tuple(crop)
        elif scale:  # (columns, rows)
            scales = [scale] if isinstance(scale[0], int) else scale
            columns, rows = max(scales, key=lambda pair: pair[0] * pair[1])
            size = rows, columns
    return size


def starts_from_noise(cfg: Config) -> bool:
    """Whether training would start with a backbone that nothing was loaded into."""
    if cfg.get('load_from') or cfg.get('resume'):
        return False
    model = cfg.get('model') or {}
    legacy = model.get('pretrained') or (model.get('backbone') or {}).get('pretrained')
    return 'backbone' in model and not legacy and not any(_pretrained(model, 'model'))


_KINDS = ('Pretrained', 'PretrainedInit', 'mmengine.Pretrained', 'swinv2_mm.Pretrained')


def _pretrained(node: Any, key: str) -> Iterator[tuple[str, dict, dict]]:
    """Every ``init_cfg=dict(type='Pretrained')`` of a model: its key, itself, and the config of its module."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for name, value in items:
        inside = f'{key}.{name}'
        if name == 'init_cfg':
            several = isinstance(value, list | tuple)
            for index, init_cfg in enumerate(value if several else [value]):
                kind = init_cfg.get('type') if isinstance(init_cfg, dict) else None
                if getattr(kind, '__name__', kind) in _KINDS:
                    yield f'{inside}.{index}' if several else inside, init_cfg, node
        else:
            yield from _pretrained(value, inside)
