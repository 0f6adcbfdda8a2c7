# DINO with four scales, SwinV2-T, COCO, 12 epochs: MMDetection's recipe (lr 1e-4, weight decay 1e-4, backbone x0.1).
# Compare: ResNet-50 there, 49.0 box AP; no published row for SwinV2.
_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', '_base_/swinv2.py', '_base_/schedules/slow_backbone.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.swinv2_t, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.widths.t[1:]),
)
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=_base_.slow_backbone))
