"""Faster and Mask R-CNN as one module: pixels of an image to boxes, scores, classes and masks."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from swinv2_mm.errors import UserError
from swinv2_mm.inference.export.boxes import LEAST, REMOVED, nms_per_group, roi_align
from swinv2_mm.inference.export.parts import Normalized, Part

Size = tuple[int, int]


class TwoStageDetectorPart(Part):
    """A detector of two stages: an image ``(1, 3, H, W)`` to its n detections, best first.

    These are boxes ``(n, 4)``, x1, y1, x2, y2 in pixels of the image, scores ``(n,)``, labels ``(n,)``, int64, and with
    a mask head masks ``(n, 28, 28)``, probabilities within the box.
    """

    task, single = 'detection', True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        given = model.data_preprocessor
        self.normalized = Normalized(given, int(given.pad_size_divisor), float(given.pad_value))
        self.outputs = ('boxes', 'scores', 'labels', 'masks')[: 4 if model.roi_head.with_mask else 3]

    def half(self) -> Part:
        raise UserError(
            f'--half: {type(self.model).__name__} is exported in float32 alone, since rounding changes which boxes it '
            'keeps. Leave --half out; --part backbone takes it.'
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.extract_feat(self.normalized(images, self.dtype))
        size = (images.shape[2], images.shape[3])
        boxes, scores, labels = self._detections(maps, *self._proposals(maps, size), size)
        results = [boxes, scores, labels]
        if self.model.roi_head.with_mask:
            results.append(self._masks(maps, boxes, labels))
        found = (scores > LEAST).nonzero()[:, 0]
        return tuple(one.index_select(0, found) for one in results)

    def _proposals(self, maps: tuple[Tensor, ...], size: Size) -> tuple[Tensor, Tensor]:
        """Of the RPN, as many as it gives at most: boxes and scores, which are REMOVED behind the last one."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        levels = list(zip(*head(maps), strict=True))
        priors = head.prior_generator.grid_priors([scores.shape[-2:] for scores, _ in levels], device=maps[0].device)
        chosen: list[tuple[Tensor, ...]] = []
        for level, ((scores, deltas), anchors) in enumerate(zip(levels, priors, strict=True)):
            scores = scores[0].permute(1, 2, 0).reshape(-1).float().sigmoid()
            deltas = deltas[0].permute(1, 2, 0).reshape(-1, 4).float()
            # Small maps have less anchors than are taken.
            scores, best = F.pad(scores, (0, cfg.nms_pre), value=REMOVED).topk(cfg.nms_pre)
            anchors, deltas = (F.pad(one, (0, 0, 0, cfg.nms_pre))[best] for one in (anchors, deltas))
            chosen.append((anchors, deltas, scores, torch.full_like(best, level)))
        anchors, deltas, scores, groups = map(torch.cat, zip(*chosen, strict=True))
        boxes = _decoded(head.bbox_coder, anchors, deltas, size)
        if cfg.get('min_bbox_size', -1) >= 0:
            large = (boxes[:, 2:] - boxes[:, :2] > cfg.min_bbox_size).all(dim=1)
            scores = torch.where(large, scores, torch.full_like(scores, REMOVED))
        return nms_per_group(boxes, scores, groups, cfg.nms.iou_threshold, LEAST, cfg.max_per_img)[:2]

    def _detections(
        self, maps: tuple[Tensor, ...], proposals: Tensor, scores: Tensor, size: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the box head: boxes, scores and classes, ``max_per_img`` of each; scores are REMOVED behind the last."""
        roi_head = self.model.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        logits, deltas = head(_pooled(roi_head.bbox_roi_extractor, maps, proposals))
        classes, real = head.num_classes, (scores > LEAST)[:, None]
        scores = logits.float().softmax(dim=-1)[:, :classes]
        scores = torch.where(real, scores, torch.full_like(scores, REMOVED)).reshape(-1)
        boxes_each = 1 if head.reg_class_agnostic else classes
        boxes = _decoded(
            head.bbox_coder, proposals.repeat_interleave(boxes_each, dim=0), deltas.float().reshape(-1, 4), size
        )
        boxes = boxes.reshape(-1, boxes_each, 4).expand(-1, classes, 4).reshape(-1, 4)
        labels = torch.arange(classes, device=boxes.device).repeat(proposals.shape[0])
        return nms_per_group(boxes, scores, labels, cfg.nms.iou_threshold, cfg.score_thr, cfg.max_per_img)

    def _masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor) -> Tensor:
        head = self.model.roi_head.mask_head
        masks = head(_pooled(self.model.roi_head.mask_roi_extractor, maps, boxes)).float().sigmoid()
        if head.class_agnostic:
            return masks[:, 0]
        return masks.gather(1, labels[:, None, None, None].expand(-1, 1, *masks.shape[2:]))[:, 0]


def _decoded(coder: Any, boxes: Tensor, deltas: Tensor, size: Size) -> Tensor:
    """Boxes moved by deltas, within an image of a size if the coder clips."""
    boxes = coder.decode(boxes, deltas)
    if not coder.clip_border:
        return boxes
    H, W = size
    largest = torch.cat([boxes.new_full((1,), side) for side in (W, H, W, H)])
    return torch.minimum(boxes.clamp(min=0), largest)


def _pooled(extractor: Any, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """What a ``SingleRoIExtractor`` gives: ``(K, C, h, w)`` in the type of the maps."""
    rois = F.pad(boxes, (1, 0))  # all are of image 0
    levels = extractor.map_roi_levels(rois, extractor.num_inputs)
    pooled = None
    for level, (layer, features) in enumerate(zip(extractor.roi_layers, maps, strict=False)):
        here = levels == level
        # A box of another level has no extent here, and costs next to nothing.
        found = roi_align(
            features.float(),
            torch.where(here[:, None], rois, torch.zeros_like(rois)),
            list(layer.output_size),
            layer.spatial_scale,
            layer.sampling_ratio,
        )
        found = torch.where(here[:, None, None, None], found, torch.zeros_like(found))
        pooled = found if pooled is None else pooled + found
    assert pooled is not None
    return pooled.to(maps[0].dtype)
