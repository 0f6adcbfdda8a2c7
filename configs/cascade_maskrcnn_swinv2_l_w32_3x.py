# Cascade Mask R-CNN, SwinV2-L, window 32, COCO 3x. No published row.
_base_ = './cascade_maskrcnn_swinv2_l_w16_3x.py'

model = dict(backbone=dict(window_size=32))
