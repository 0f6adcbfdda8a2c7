# Mask R-CNN, SwinV2-T, COCO 1x. Compare: Swin V1-T, 43.7 box / 39.8 mask AP; no published row for SwinV2.
_base_ = [
    '_base_/models/maskrcnn_swinv2_t.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
]
