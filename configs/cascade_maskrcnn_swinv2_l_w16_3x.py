# Cascade Mask R-CNN, SwinV2-L, window 16, COCO 3x, as cascade_maskrcnn_swinv2_t_w16_3x.
# No published row.
_base_ = './cascade_maskrcnn_swinv2_t_w16_3x.py'

model = dict(backbone=dict(**_base_.swinv2_l, drop_path_rate=0.3), neck=dict(in_channels=_base_.widths.l))
