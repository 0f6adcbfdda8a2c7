# Mask R-CNN with FPN as MMDetection has it, on SwinV2-T.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='swinv2_mm.SwinTransformerV2',
        arch='tiny',
        window_size=16,
        # The window of the ImageNet pre-training; it belongs to the weights.
        pretrained_window_sizes=8,
        drop_path_rate=0.2,
        init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint='swinv2_tiny_patch4_window8_256')),
    neck=dict(in_channels=[96, 192, 384, 768]))
