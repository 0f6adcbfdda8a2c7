# RetinaNet, SwinV2-S, COCO 1x, as retinanet_swinv2_t. No published row.
_base_ = './retinanet_swinv2_t.py'

model = dict(backbone=_base_.swinv2_s, neck=dict(in_channels=_base_.widths.s[1:]))
