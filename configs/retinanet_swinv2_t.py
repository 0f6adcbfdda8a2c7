# RetinaNet, SwinV2-T, COCO 1x, with the optimizer of maskrcnn_swinv2_t. No published row.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    '_base_/swinv2.py',
    'mmdet::_base_/datasets/coco_detection.py',
    '_base_/schedules/coco_1x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    # The neck starts at the second map; a first one that nothing uses would stop distributed training.
    backbone=dict(_delete_=True, **_base_.swinv2_t, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.widths.t[1:], start_level=0),
)
