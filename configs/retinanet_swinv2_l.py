# RetinaNet, SwinV2-L, COCO 1x, as retinanet_swinv2_t. No published row.
_base_ = './retinanet_swinv2_t.py'

model = dict(backbone=dict(**_base_.swinv2_l, drop_path_rate=0.3), neck=dict(in_channels=_base_.widths.l[1:]))
