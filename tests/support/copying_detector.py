"""A detector that copies annotations, moved by some pixels and partly of another class: metrics without a training."""

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModel
from mmengine.structures import InstanceData


@MODELS.register_module()
class CopyingDetector(BaseModel):
    """Needs annotations in the pixels of the image as it was loaded.

    Args:
        data_preprocessor: Of MMDetection.
        classes: How many.
    """

    def __init__(self, data_preprocessor: dict, classes: int = 3):
        super().__init__(data_preprocessor)
        self.classes = classes
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs: torch.Tensor, data_samples: list, mode: str = 'predict') -> list:
        for sample in data_samples:
            truth = sample.gt_instances
            generator = torch.Generator().manual_seed(sample.img_id)
            labels = truth.labels.clone()
            labels[:1] = (labels[:1] + sample.img_id % 2) % self.classes
            moved = truth.bboxes + torch.randint(-3, 4, (len(labels), 4), generator=generator)
            masks = torch.from_numpy(truth.masks.masks).roll(2, dims=2).bool()
            scores = torch.rand(len(labels), generator=generator)
            sample.pred_instances = InstanceData(bboxes=moved, labels=labels, scores=scores, masks=masks)
        return data_samples
