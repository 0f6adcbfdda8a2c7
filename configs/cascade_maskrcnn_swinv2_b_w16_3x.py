# Cascade Mask R-CNN, SwinV2-B, window 16, COCO 3x, as cascade_maskrcnn_swinv2_t_w16_3x.
# Compare: Swin V1-B, 51.9 box / 45.0 mask AP; no published row for SwinV2.
_base_ = './cascade_maskrcnn_swinv2_t_w16_3x.py'

model = dict(backbone=dict(**_base_.swinv2_b, drop_path_rate=0.3), neck=dict(in_channels=_base_.widths.b))
