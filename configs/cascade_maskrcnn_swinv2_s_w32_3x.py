# Cascade Mask R-CNN, SwinV2-S, window 32, COCO 3x. No published row.
_base_ = './cascade_maskrcnn_swinv2_s_w16_3x.py'

model = dict(backbone=dict(window_size=32))
