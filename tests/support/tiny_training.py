"""A training that takes seconds and draws from every source of randomness: drop path, shuffling, augmentation."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from torch.utils.data import Dataset

CONFIG = """
custom_imports = dict(imports=['support.tiny_training'])
default_scope = 'mmengine'
model = dict(
    type='TinyRegressor', noise={noise},
    backbone=dict(
        type='swinv2_mm.SwinTransformerV2', embed_dims={width}, depths=(1, 2), num_heads=(1, 2), window_size=4,
        drop_path_rate=0.5 if {noise} else 0.0, out_indices=(1,)))
train_dataloader = dict(
    batch_size={batch_size}, num_workers={num_workers}, persistent_workers={persistent_workers},
    sampler=dict(type='{sampler}', shuffle=True), dataset=dict(type='TinyImages', augment={noise}))
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='TinyImages', augment=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='TinyError')
test_evaluator = val_evaluator
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='{optimizer}', lr=1e-2), clip_grad=dict(max_norm=1.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6),
    dict(type='MultiStepLR', milestones=[2], gamma=0.5, by_epoch=True),
]
train_cfg = {train_cfg}
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(checkpoint=dict(
    type='CheckpointHook', by_epoch={by_epoch}, interval=1, save_best='error', rule='less'), report=None)
custom_hooks = [dict(type='swinv2_mm.EpochSeedHook')]
randomness = dict(seed=7)
auto_scale_lr = dict(enable=False, base_batch_size=16)
log_level = 'WARNING'
"""
SETTINGS = {
    'noise': True,
    'width': 8,
    'batch_size': 2,
    'num_workers': 0,
    'persistent_workers': False,
    'sampler': 'DefaultSampler',
    'optimizer': 'AdamW',
    'by_epoch': True,
    'train_cfg': 'dict(by_epoch=True, max_epochs=3, val_interval=1)',
}


def write_config(folder: Path, name: str = 'tiny.py', extra: str = '', **settings: object) -> Path:
    """Write a config of the tiny training, with some settings changed and lines added."""
    path = folder / name
    path.write_text(CONFIG.format(**(SETTINGS | settings)) + extra)
    return path


@MODELS.register_module()
class TinyRegressor(BaseModel):
    """Predicts the mean brightness of an image through a SwinV2 backbone with drop path and dropout.

    Args:
        backbone: Config of the backbone; its last stage is used.
        noise: Whether dropout is on.
    """

    def __init__(self, backbone: dict, noise: bool = True, init_cfg: dict | None = None):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.drop = torch.nn.Dropout(0.5 if noise else 0.0)
        self.head = torch.nn.Linear(backbone['embed_dims'] * 2 ** (len(backbone['depths']) - 1), 1)

    def forward(self, image: torch.Tensor, target: torch.Tensor, mode: str = 'tensor') -> object:
        feature = self.backbone(torch.stack(list(image)))[-1].mean((2, 3))
        output = self.head(self.drop(feature))[:, 0]
        target = torch.as_tensor(target, dtype=output.dtype)
        if mode == 'loss':
            return {'loss': (output - target).square().mean()}
        return (output - target).abs().detach().tolist()


@DATASETS.register_module()
class TinyImages(Dataset):
    """Eight images of 32 x 32; augmented from all three global generators.

    Args:
        augment: Whether to.
    """

    def __init__(self, augment: bool):
        self.augment = augment
        self.images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        image, target = self.images[index], self.images[index].mean().item()
        if self.augment:
            image = image + 0.1 * torch.randn(()) + 0.1 * float(np.random.randn()) + 0.1 * random.gauss(0, 1)
        return {'image': image, 'target': target}


@METRICS.register_module()
class TinyError(BaseMetric):
    """Mean absolute error."""

    def process(self, data_batch: object, data_samples: list[float]) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, object]:
        return {'error': np.float32(np.mean(results))}


@HOOKS.register_module()
class KillHook(Hook):
    """Kill a process, as the kernel would, in front of one iteration, unless torchrun has restarted it.

    Args:
        iteration: Which.
        rank: The process.
    """

    def __init__(self, iteration: int, rank: int = 0):
        self.place = iteration, rank

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        if (runner.iter, runner.rank) == self.place and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0':
            os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class TellHook(Hook):
    """Send a signal in front of one iteration of the first process.

    Args:
        iteration: Which.
        number: The signal.
        levels: To whom: 0 for this process, 1 for its parent, 2 for that of its parent.
        seconds: If not 0, wait for so long, and send it again.
        group: To the process and its group, from outside: torch's data workers take their parent's signals for orders.
    """

    def __init__(self, iteration: int, number: int, levels: int = 0, seconds: float = 0, group: bool = False):
        self.iteration, self.number, self.levels, self.seconds = iteration, number, levels, seconds
        self.group = group

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        if (runner.iter, runner.rank) != (self.iteration, 0):
            return
        process = os.getpid()
        for _ in range(self.levels):
            process = int(Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[1])
        for _ in range(2 if self.seconds else 1):
            if self.group:
                subprocess.run(['kill', f'-{self.number}', '--', f'-{os.getpgid(0)}'], start_new_session=True)
            else:
                os.kill(process, self.number)
            time.sleep(self.seconds)


@HOOKS.register_module()
class SlowHook(Hook):
    """Make each iteration take longer."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        time.sleep(self.seconds)


@HOOKS.register_module()
class WaitHook(Hook):
    """Say that an iteration is reached, by a file ``reached``, and wait for a file ``go_on``.

    Args:
        iteration: In front of which, in the first process.
    """

    def __init__(self, iteration: int):
        self.iteration = iteration

    def before_train_iter(self, runner: object, batch_idx: int, data_batch: object = None) -> None:
        if (runner.iter, runner.rank) == (self.iteration, 0):
            Path('reached').touch()
            for _ in range(1200):
                if Path('go_on').exists():
                    return
                time.sleep(0.1)
            raise TimeoutError('nobody said go on')
