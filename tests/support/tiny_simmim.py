"""A pre-training that takes seconds: SimMIM with drop path, on images in memory, which two processes divide."""

import hashlib
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, HOOKS
from torch.utils.data import Dataset

from swinv2_mm.models import simmim

CONFIG = """
custom_imports = dict(imports=['support.tiny_simmim'])
default_scope = 'mmengine'
model = dict(
    type='swinv2_mm.SimMIM', mask_patch_size=8, norm_target=7,
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[0.5], std=[0.3]),
    backbone=dict(
        type='swinv2_mm.SwinTransformerV2', embed_dims=8, depths=(1, 2), num_heads=(1, 2), window_size=4,
        drop_path_rate={drop_path_rate}))
train_dataloader = dict(
    batch_size={batch_size}, num_workers={num_workers}, persistent_workers={num_workers} > 0,
    sampler=dict(type='{sampler}', shuffle=True), dataset=dict(type='TinyUnlabelled', augment={augment}))
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2, weight_decay=0.05), clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={{
        key: dict(decay_mult=0.0) for key in ('cpb_mlp', 'logit_scale', 'q_bias', 'v_bias', 'mask_token')}}))
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)]
train_cfg = {train_cfg}
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', by_epoch={by_epoch}, interval=1),
    logger=dict(type='LoggerHook', interval=1), report=None)
custom_hooks = [dict(type='swinv2_mm.EpochSeedHook')]
randomness = dict(seed=7)
log_level = 'WARNING'
"""
NAMES = ('ddp', 'zero1', 'fsdp2', 'bfloat16')  # of the runs by two processes, see simmim_trainings.py
SETTINGS = {
    'drop_path_rate': 0.5,
    'augment': True,
    'batch_size': 2,
    'num_workers': 0,
    'sampler': 'DefaultSampler',
    'by_epoch': True,
    'train_cfg': 'dict(by_epoch=True, max_epochs=3)',
}


def write_config(folder: Path, name: str = 'simmim.py', extra: str = '', **settings: object) -> Path:
    """Write a config of the tiny pre-training, with some settings changed and lines added."""
    path = folder / name
    path.write_text(CONFIG.format(**(SETTINGS | settings)) + extra)
    return path


@DATASETS.register_module()
class TinyUnlabelled(Dataset):
    """Eight images of 32 x 32, of smooth colours.

    Args:
        augment: Whether to shift the colours.
        crop_size: Only said, not done.
    """

    def __init__(self, augment: bool, crop_size: object = None):
        self.augment = augment
        colours = torch.rand(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        self.images = F.interpolate(colours, size=(32, 32), mode='bilinear')

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        image = self.images[index]
        return {'inputs': image + 0.1 * torch.randn(3, 1, 1) + random.gauss(0, 0.1) if self.augment else image}


@HOOKS.register_module()
class RecordHook(Hook):
    """Note the masks of a run, and its weights at the end, in ``masks_RANK.txt`` and ``weights_RANK.txt``.

    Args:
        folder: Where; it must exist.
    """

    def __init__(self, folder: str = '.'):
        self.folder = Path(folder)

    def before_train(self, runner: object) -> None:
        self.masks, self.draw = [], simmim.draw_mask
        simmim.draw_mask = self.record

    def record(self, *args: object) -> torch.Tensor:
        mask = self.draw(*args)
        self.masks.append(''.join(str(int(hidden)) for hidden in mask.flatten()))
        return mask

    def after_train(self, runner: object) -> None:
        simmim.draw_mask = self.draw
        (self.folder / f'masks_{runner.rank}.txt').write_text('\n'.join(self.masks))
        weights = b''.join(tensor.numpy().tobytes() for tensor in runner.model.state_dict().values())
        (self.folder / f'weights_{runner.rank}.txt').write_text(hashlib.sha256(weights).hexdigest())
