"""A tiny training on a data set of mmengine's kind, some of whose images cannot be read."""

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, TRANSFORMS

DAMAGED = (2, 5)


@DATASETS.register_module()
class ListedImages(BaseDataset):
    """Sixteen names of images."""

    def load_data_list(self) -> list[dict]:
        return [{'img_path': f'{index}.png'} for index in range(16)]


@TRANSFORMS.register_module()
class LoadNoise:
    """Draws an image that depends on its name, and augments it; some are damaged."""

    def __call__(self, results: dict) -> dict:
        index = int(results['img_path'].partition('.')[0])
        if index in DAMAGED:
            raise OSError('image file is truncated')
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        results['img'] = (image + 0.1 * float(np.random.randn())).numpy()
        results['ori_shape'] = (3, 32)
        return results


@TRANSFORMS.register_module()
class PackNoise:
    """What the tiny model takes."""

    def __call__(self, results: dict) -> dict:
        image = torch.from_numpy(results['img'])
        return {'image': image, 'target': image.mean().item()}


EXTRA = """
custom_imports['imports'].append('support.damaged_training')
pipeline = [dict(type='LoadNoise'), dict(type='PackNoise')]
train_dataloader['dataset'] = dict(type='ListedImages', pipeline=pipeline)
"""
