# Cascade Mask R-CNN, SwinV2-T, window 16, COCO 3x, short side 480 to 800. Target: 51.1 box AP (paper, table 1).
# Compare: Swin V1-T, 50.4 box / 43.7 mask AP. The box heads are those of Swin V1's: four convolutions, one linear
# layer, GIoU loss.
_base_ = [
    'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py',
    '_base_/swinv2.py',
    '_base_/datasets/coco_ms_480_800.py',
    '_base_/schedules/coco_3x.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.swinv2_t, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.widths.t),
    roi_head=dict(
        bbox_head=[
            dict(
                head,
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                norm_cfg=dict(type='SyncBN', requires_grad=True),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
            )
            for head in _base_.model.roi_head.bbox_head
        ]
    ),
)
