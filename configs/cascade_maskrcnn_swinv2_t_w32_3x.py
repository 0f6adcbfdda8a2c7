# Cascade Mask R-CNN, SwinV2-T, window 32, COCO 3x. Target: 51.8 box AP (paper, table 1).
_base_ = './cascade_maskrcnn_swinv2_t_w16_3x.py'

model = dict(backbone=dict(window_size=32))
