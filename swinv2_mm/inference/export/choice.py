"""Which module is exported of a model, and what of its config no graph can have."""

from __future__ import annotations

from typing import Any

from swinv2_mm.errors import UserError
from swinv2_mm.inference.export.parts import BackbonePart, DenseDetectorPart, Part, SegmentorPart
from swinv2_mm.inference.export.two_stage import TwoStageDetectorPart

# Of Faster and Mask R-CNN: what is exported computes what these do, and what derives from them may do more.
KINDS = {
    'rpn_head': 'RPNHead',
    'rpn_head.prior_generator': 'AnchorGenerator',
    'rpn_head.bbox_coder': 'DeltaXYWHBBoxCoder',
    'roi_head': 'StandardRoIHead',
    'roi_head.bbox_roi_extractor': 'SingleRoIExtractor',
    'roi_head.bbox_head': 'Shared2FCBBoxHead Shared4Conv1FCBBoxHead ConvFCBBoxHead',
    'roi_head.bbox_head.bbox_coder': 'DeltaXYWHBBoxCoder',
    'roi_head.mask_roi_extractor': 'SingleRoIExtractor',
    'roi_head.mask_head': 'FCNMaskHead',
}


def choose_part(model: Any, part: str, logits: bool) -> Part:
    """The part of a model that ``--part`` names: ``'model'`` or ``'backbone'``.

    Raises:
        UserError: The kind of model cannot be exported as a whole.
    """
    if not hasattr(getattr(model, 'backbone', model), 'set_window_size'):
        raise UserError(
            f'the backbone of {type(model).__name__} is no swinv2_mm.SwinTransformerV2; mmdeploy exports others.'
        )
    if part == 'backbone':
        return BackbonePart(model)
    head = getattr(model, 'decode_head', None)
    if head is not None and _is_plain_segmentor(model):
        return SegmentorPart(model, logits)
    if logits:
        raise UserError(f'--logits: {type(model).__name__} is not a segmentor that gives a logit per class and pixel.')
    if type(model).__name__ in ('RetinaNet', 'ATSS') and type(model.bbox_head).__name__ in ('RetinaHead', 'ATSSHead'):
        return DenseDetectorPart(model)
    if type(model).__name__ in ('FasterRCNN', 'MaskRCNN'):
        check_two_stages(model)
        return TwoStageDetectorPart(model)
    inner = getattr(model, 'decode_head', None) or getattr(model, 'bbox_head', None)
    kind = type(model).__name__ + (f' with {type(inner).__name__}' if inner is not None else '')
    raise UserError(
        f'{kind} cannot be exported as a whole: that is done for segmentors with heads that give a map of logits '
        '(UperNet, FCN, PSPNet and the like), RetinaNet, ATSS, Faster and Mask R-CNN. Pass --part backbone for its '
        'backbone.'
    )


def _is_plain_segmentor(model: Any) -> bool:
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead
    from mmseg.models.segmentors import EncoderDecoder

    return (
        type(model) is EncoderDecoder
        and isinstance(model.decode_head, BaseDecodeHead)
        and type(model.decode_head).predict is BaseDecodeHead.predict
        and type(model.decode_head).predict_by_feat is BaseDecodeHead.predict_by_feat
    )


def check_two_stages(model: Any) -> None:
    """Raise a UserError for what :class:`TwoStageDetectorPart` does not compute as the model does."""
    roi_head = model.roi_head
    for key, kinds in KINDS.items():
        if 'mask' in key and not roi_head.with_mask:
            continue
        owner: Any = model
        for name in key.split('.'):
            owner = getattr(owner, name)
        if type(owner).__name__ not in kinds.split():
            _refuse(model, f'model.{key} is {type(owner).__name__}, and {" or ".join(kinds.split())} is exported')
    head = roi_head.bbox_head
    if roi_head.with_shared_head:
        _refuse(model, 'model.roi_head.shared_head is not exported')
    if not model.rpn_head.use_sigmoid_cls or head.custom_cls_channels:
        _refuse(model, 'a loss_cls that brings its own activation is not exported (RPN: sigmoid, box head: softmax)')
    for extractor in (roi_head.bbox_roi_extractor, *([roi_head.mask_roi_extractor] if roi_head.with_mask else [])):
        for layer in extractor.roi_layers:
            if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg' or not layer.aligned:
                _refuse(model, 'a roi_layer other than RoIAlign with pool_mode="avg" and aligned=True is not exported')
    for key, cfg in (('rpn', model.rpn_head.test_cfg), ('rcnn', roi_head.test_cfg)):
        nms = dict(cfg.nms)
        if nms.pop('type', 'nms') != 'nms' or set(nms) - {'iou_threshold', 'split_thr'}:
            _refuse(model, f'model.test_cfg.{key}.nms={dict(cfg.nms)}: type "nms" with iou_threshold alone is exported')
        for limit in ('nms_pre', 'max_per_img') if key == 'rpn' else ('max_per_img',):
            if cfg.get(limit, -1) <= 0:
                _refuse(model, f'model.test_cfg.{key}.{limit} must be a number above 0')
    if roi_head.test_cfg.score_thr < 0:
        _refuse(model, 'model.test_cfg.rcnn.score_thr must not be below 0')


def _refuse(model: Any, why: str) -> None:
    raise UserError(
        f'{type(model).__name__} cannot be exported as a whole: {why}. Change it with --cfg-options where the weights '
        'allow, or pass --part backbone for the backbone alone.'
    )
