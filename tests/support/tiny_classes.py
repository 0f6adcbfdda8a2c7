"""A classification that takes seconds: coloured pictures in ImageNet's folders, and its config for a tiny model."""

from pathlib import Path

import numpy as np
from PIL import Image

from support import ROOT

CONFIG = ROOT / 'configs' / 'imagenet_swinv2_t_256.py'
COLOURS = {'blue': (40, 40, 200), 'green': (40, 200, 40), 'red': (200, 40, 40)}  # alphabetical, as labels are
COUNTS = {'train': 8, 'val': 3}
# For the classes, which a user sets, too, and for the time that a test takes.
CLASSES = {
    'model.head.num_classes': 3,
    'data_preprocessor.num_classes': 3,
    'train_dataloader.dataset.classes': tuple(COLOURS),
    'val_dataloader.dataset.classes': tuple(COLOURS),
    'test_dataloader.dataset.classes': tuple(COLOURS),
    'val_evaluator.topk': (1,),
    'test_evaluator.topk': (1,),
}
TINY = CLASSES | {
    'model.backbone.embed_dims': 16,
    'model.backbone.depths': (1, 1, 1, 1),
    'model.backbone.num_heads': (1, 2, 4, 8),
    'model.head.in_channels': 128,
    'train_cfg.max_epochs': 3,
    'train_dataloader.batch_size': 8,
    'randomness.seed': 7,
    'train_dataloader.dataset.pipeline.1.scale': 64,
    **{f'{split}_dataloader.dataset.pipeline.1.scale': 64 for split in ('val', 'test')},
    **{f'{split}_dataloader.dataset.pipeline.2.crop_size': 64 for split in ('val', 'test')},
    **{f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')},
    **{f'{split}_dataloader.persistent_workers': False for split in ('train', 'val', 'test')},
    'default_hooks.report': None,
}


def write_pictures(folder: Path) -> Path:
    """Write ``data/imagenet/SPLIT/COLOUR`` into a folder, and return ``data/imagenet``."""
    draw = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name, colour in COLOURS.items():
            place = folder / 'data' / 'imagenet' / split / name
            place.mkdir(parents=True)
            for index in range(count):
                picture = np.clip(colour + draw.normal(0, 30, (72, 80, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(picture).save(place / f'{index}.jpg')
    return folder / 'data' / 'imagenet'


def flags(options: dict) -> list[str]:
    """The options as a shell gives them."""
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
