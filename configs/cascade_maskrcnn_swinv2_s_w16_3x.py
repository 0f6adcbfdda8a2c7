# Cascade Mask R-CNN, SwinV2-S, window 16, COCO 3x, as cascade_maskrcnn_swinv2_t_w16_3x.
# Compare: Swin V1-S, 51.9 box / 45.0 mask AP; no published row for SwinV2.
_base_ = './cascade_maskrcnn_swinv2_t_w16_3x.py'

model = dict(backbone=_base_.swinv2_s, neck=dict(in_channels=_base_.widths.s))
