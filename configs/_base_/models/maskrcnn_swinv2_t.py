# Mask R-CNN with FPN as MMDetection has it, on SwinV2-T.
_base_ = ['mmdet::_base_/models/mask-rcnn_r50_fpn.py', '../swinv2.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.swinv2_t, drop_path_rate=0.2), neck=dict(in_channels=_base_.widths.t)
)
