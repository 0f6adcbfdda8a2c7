"""A pre-training that takes seconds, on pictures in a folder: SimMIM, the data set without labels and its pipeline."""

from pathlib import Path

import cv2
import numpy as np

CONFIG = """
custom_imports = dict(imports=['mmcv.transforms'])
default_scope = 'mmengine'
model = dict(
    type='swinv2_mm.SimMIM', mask_patch_size=8, norm_target={norm_target},
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[110.0] * {means}, std=[60.0] * {means}, bgr_to_rgb={means} == 3),
    backbone=dict(
        type='swinv2_mm.SwinTransformerV2', embed_dims=8, depths=(1, 1), num_heads=(1, 1), window_size=4,
        drop_path_rate=0.5, in_channels={channels}))
train_dataloader = dict(
    batch_size=2, num_workers={num_workers}, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='swinv2_mm.UnlabelledImages', data_root='{data_root}', data_prefix=dict(img_path=''), pipeline=[
            dict(type='LoadImageFromFile', color_type='{color_type}'),
            dict(type='swinv2_mm.RandomResizedCrop', scale=(32, 24)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='swinv2_mm.PackImages')]))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
train_cfg = dict(by_epoch=True, max_epochs={max_epochs})
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1), report=None)
custom_hooks = {hooks}
randomness = dict(seed=7)
log_level = 'WARNING'
"""
SETTINGS = {
    'norm_target': 7,
    'means': 3,
    'channels': 3,
    'color_type': 'color',
    'num_workers': 0,
    'max_epochs': 2,
    'data_root': 'pictures',
    'hooks': "[dict(type='swinv2_mm.EpochSeedHook')]",
}


def write_config(folder: Path, name: str = 'unlabelled.py', extra: str = '', **settings: object) -> Path:
    """Write a config of the tiny pre-training, with some settings changed and lines added."""
    path = folder / name
    path.write_text(CONFIG.format(**(SETTINGS | settings)) + extra)
    return path


def write_pictures(folder: Path, number: int = 4, shape: tuple = (40, 48, 3), name: str = '{}.png') -> Path:
    """Write pictures of smooth colours into a folder, and return it."""
    for index in range(number):
        path = folder / name.format(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(index).integers(0, 256, (3, 4, *shape[2:]), np.uint8)
        assert cv2.imwrite(str(path), cv2.resize(colours, shape[1::-1]))
    return folder
