# Mask2Former for semantic segmentation, SwinV2-T, ADE20K, 512 pixels, 160k iterations: MMSegmentation's recipe (lr
# 1e-4, weight decay 0.05, backbone x0.1, drop path 0.3). Compare: Swin V1-T there, 48.66 mIoU; no published row for
# SwinV2.
_base_ = [
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    '_base_/swinv2.py',
    '_base_/schedules/slow_backbone.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.swinv2_t, drop_path_rate=0.3), decode_head=dict(in_channels=_base_.widths.t)
)
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=_base_.slow_backbone))
