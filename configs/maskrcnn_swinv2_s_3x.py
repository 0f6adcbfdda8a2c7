# Mask R-CNN, SwinV2-S, COCO 3x, as maskrcnn_swinv2_t_3x.
# Compare: Swin V1-S, 48.5 box / 43.3 mask AP; no published row for SwinV2.
_base_ = './maskrcnn_swinv2_t_3x.py'

model = dict(backbone=_base_.swinv2_s, neck=dict(in_channels=_base_.widths.s))
