"""A tiny training in which one image makes a module compute NaN."""

import torch
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement

from support.tiny_training import TinyImages, TinyRegressor


class Poison(torch.nn.Module):
    """The identity, but for the images that are marked.

    Args:
        kind: 'forward' makes NaN of them, which the model refuses if 'refused'; 'backward' is the identity with a
            gradient of NaN; 'none' lets them be.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def forward(self, feature: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
        if self.kind == 'none':
            return feature
        bad = feature[marked]
        bad = bad + (bad * 0).sqrt() if self.kind == 'backward' else bad * float('nan')
        return feature.index_put((marked,), bad)


@MODELS.register_module()
class PoisonedRegressor(TinyRegressor):
    """The tiny model with a poison in front of its head, behind noise, and a batch norm that would remember NaN.

    Args:
        poison: See :class:`Poison`.
        **kwargs: Those of the tiny model.
    """

    def __init__(self, poison: str, **kwargs):
        super().__init__(**kwargs)
        self.poison = Poison(poison)
        self.norm = torch.nn.BatchNorm1d(self.head.in_features)

    def forward(self, image, target, sample, mode='tensor'):
        feature = self.drop(self.backbone(torch.stack(list(image)))[-1].mean((2, 3)))
        feature = self.poison(feature, torch.tensor([bool(each.marked) for each in sample]))
        output = self.head(self.norm(feature))[:, 0]
        if self.poison.kind == 'refused' and not output.isfinite().all():
            raise ValueError('matrix contains invalid numeric entries')
        target = torch.as_tensor(target, dtype=output.dtype)
        if mode != 'loss':
            return (output - target).abs().tolist()
        LOSSES.append(float((output.detach() - target).square().mean()))
        return {'loss': (output - target).square().mean()}


LOSSES = []  # of all steps, repetitions included


@DATASETS.register_module()
class NamedImages(TinyImages):
    """The tiny images with names; 5.png is marked."""

    def __getitem__(self, index: int) -> dict:
        sample = BaseDataElement(metainfo={'img_path': f'{index}.png', 'marked': index == 5})
        return {**super().__getitem__(index), 'sample': sample}


EXTRA = """
custom_imports['imports'].append('support.poisoned_training')
model.update(type='PoisonedRegressor', poison='{poison}')
train_dataloader['dataset']['type'] = 'NamedImages'
val_dataloader['dataset']['type'] = 'NamedImages'
default_hooks['logger'] = dict(type='LoggerHook', interval=1)
"""
