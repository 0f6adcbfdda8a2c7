# Mask R-CNN, SwinV2-L, COCO 1x, as maskrcnn_swinv2_t. No published row.
_base_ = './maskrcnn_swinv2_t.py'

model = dict(backbone=dict(**_base_.swinv2_l, drop_path_rate=0.3), neck=dict(in_channels=_base_.widths.l))
