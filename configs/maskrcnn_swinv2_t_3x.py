# Mask R-CNN, SwinV2-T, COCO 3x with multi-scale training (short side 480 to 800, as in the paper's ablations).
# Compare: Swin V1-T, 46.0 box / 41.6 mask AP; no published row for SwinV2.
_base_ = [
    '_base_/models/maskrcnn_swinv2_t.py',
    '_base_/datasets/coco_ms_480_800.py',
    '_base_/schedules/coco_3x.py',
    'mmdet::_base_/default_runtime.py',
]
