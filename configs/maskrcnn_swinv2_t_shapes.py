# Mask R-CNN, SwinV2-T, on the generated shapes: from scratch, on two CPU cores.
_base_ = [
    '_base_/models/maskrcnn_swinv2_t_light.py',
    '_base_/datasets/shapes_instance.py',
    '_base_/schedules/shapes.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=2, max_keep_ckpts=2))
