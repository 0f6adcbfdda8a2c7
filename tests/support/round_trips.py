"""Trainings of the configs of the zoo, and the features that their checkpoints must give back."""

from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from support.probe import features
from support.zoo import ROOT, TEST_ONLY, TRAINING, load, shorten, shrunken
from swinv2_mm import SwinTransformerV2
from swinv2_mm.checkpoints.convert import export_state_dict

WRONG = 7  # a pretrained window that no release has


@dataclass(frozen=True)
class Case:
    """A training, and how its checkpoint is used.

    Attributes:
        stem: The config that trains.
        tested: The config that the checkpoint is used with, if that is another one.
        pretrained: None for the windows that the config gives. Others are in the file of ``init_cfg`` alone, which is
            deleted after the training.
        changes: More arguments of the backbone.
        hooks: Custom hooks.
    """

    stem: str
    tested: str | None = None
    pretrained: tuple[int, ...] | None = None
    changes: dict = field(default_factory=dict)
    hooks: tuple[dict, ...] = ()

    def __str__(self):
        words = [self.tested or self.stem, *(['untold'] if self.pretrained else []), *(['ema'] if self.hooks else [])]
        return '-'.join(words)


AVERAGE = {'type': 'EMAHook', 'momentum': 0.3}
UNTOLD = [
    Case('maskrcnn_swinv2_t', pretrained=(8, 8, 8, 4), changes=dict(window_size=16)),
    Case(
        'upernet_swinv2_b',
        pretrained=(12, 12, 12, 6),
        changes=dict(window_size=16, depths=(1, 2, 1, 1)),
        hooks=(AVERAGE,),
    ),
    Case(
        'maskrcnn_swinv2_s',
        pretrained=(8, 8, 8, 4),
        changes=dict(window_size=16, depths=(2, 1, 1, 1)),
        hooks=(dict(AVERAGE, update_buffers=True),),
    ),
    Case('upernet_swinv2_t', pretrained=(16, 16, 16, 8), changes=dict(window_size=16)),
]
ZOO = [
    # Classifiers need MMPretrain; tests/engine/runs/test_classifiers.py trains and resumes one.
    *(Case(path.stem) for path in TRAINING if not path.stem.startswith('imagenet_')),
    *(Case(path.stem.replace('_896_test', '_640'), path.stem) for path in TEST_ONLY),
]
# One of each family and each way of giving the windows; the others take minutes.
QUICK = {
    'maskrcnn_swinv2_t',
    'htcpp_swinv2_l_w16to32_1536',
    'cascade_maskrcnn_swinv2_t_w16_3x',
    'upernet_swinv2_b_640',
    'mask2former_swinv2_t',
    'dino_swinv2_t',
    'maskrcnn_swinv2_g_w32_1536_fsdp2',
    *map(str, UNTOLD[:2]),
}
CASES = [
    pytest.param(case, id=str(case), marks=[] if str(case) in QUICK else pytest.mark.slow) for case in (*ZOO, *UNTOLD)
]


@dataclass
class Run:
    """A finished training.

    Attributes:
        configs: As the user wrote it, and as the work dir has it.
        untold: Whether the former leaves the windows to the weights.
        trained: The config that was trained, which resumes.
        options: For ``--cfg-options`` of a training.
        work_dir: Where it left its files.
        checkpoint: The last one.
        state: What that holds of the model.
        windows: The pretrained windows it was trained with.
        noted: The features at its end.
        saved: The backbone that the checkpoint is to give back: the average, if there is one.
    """

    configs: tuple[Path, Path]
    untold: bool
    trained: Path
    options: dict
    work_dir: Path
    checkpoint: str
    state: dict
    windows: tuple
    noted: tuple
    saved: SwinTransformerV2

    @property
    def longer(self):
        """The option that makes a training go on."""
        train_cfg = Config.fromfile(self.trained).train_cfg
        name = 'max_epochs' if 'max_epochs' in train_cfg else 'max_iters'
        return {f'train_cfg.{name}': train_cfg[name] + 1}

    @property
    def backbone_state(self):
        return {
            name.removeprefix('backbone.'): tensor
            for name, tensor in self.state.items()
            if name.startswith('backbone.')
        }

    def expect(self, backbone):
        """Compare a backbone with the one that was saved, at the same window."""
        assert backbone.pretrained_window_sizes == self.windows
        assert same(features(backbone), self.features_at(backbone.window_size))

    def features_at(self, window_size):
        return features(resized(self.saved, window_size))


def resized(backbone, window_size):
    backbone = deepcopy(backbone)
    backbone.set_window_size(window_size)
    return backbone


def same(maps, others):
    return len(maps) == len(others) and all(map(torch.equal, maps, others))


def flags(options):
    """Options as a shell gives them."""
    return ['--cfg-options', *(f'{name}={value}' for name, value in options.items())] if options else []


def microsoft_file(backbone, windows, path):
    """Weights of ImageNet as Microsoft's code saves them; their tables alone tell the windows."""
    weights, _ = export_state_dict(backbone.state_dict(), 'microsoft')
    weights = {name: tensor for name, tensor in weights.items() if 'pretrained_window' not in name}
    for index, (stage, window) in enumerate(zip(backbone.stages, windows, strict=True)):
        axis = 8 * torch.arange(1.0 - window, window) / (window - 1)
        axis = axis.sign() * torch.log2(1 + axis.abs()) / 3
        table = torch.stack(torch.meshgrid(axis, axis, indexing='ij'), dim=-1)[None]
        weights |= {
            f'layers.{index}.blocks.{block}.attn.relative_coords_table': table.clone()
            for block in range(len(stage.blocks))
        }
    torch.save({'model': weights}, path)
    return path


def small(stem, data):
    """A config of the zoo for one iteration; what its ``init_cfg`` names stays, and is not there."""
    cfg = load(ROOT / f'{stem}.py')
    init_cfg = deepcopy(cfg.model.backbone.init_cfg)
    shrunken(cfg)
    cfg.model.backbone.init_cfg = init_cfg
    shorten(cfg, data)
    return cfg


def initialise(config, checkpoint, **arguments):
    """``init_detector`` or ``init_model``, and its counterpart that predicts."""
    if Config.fromfile(config).default_scope == 'mmdet':
        from mmdet.apis import inference_detector, init_detector

        return init_detector(str(config), checkpoint, device='cpu', **arguments), inference_detector
    from mmseg.apis import inference_model, init_model

    return init_model(str(config), checkpoint, device='cpu', **arguments), inference_model
