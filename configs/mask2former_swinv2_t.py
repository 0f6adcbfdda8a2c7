# Mask2Former for instances, SwinV2-T, COCO, 50 epochs at 1024 pixels: MMDetection's recipe (lr 1e-4, weight decay 0.05,
# backbone x0.1, drop path 0.3). Compare: Swin V1-T there, 47.7 box / 44.7 mask AP; no published row for SwinV2.
_base_ = [
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    '_base_/swinv2.py',
    '_base_/schedules/slow_backbone.py',
]

model = dict(
    backbone=dict(_delete_=True, **_base_.swinv2_t, drop_path_rate=0.3), panoptic_head=dict(in_channels=_base_.widths.t)
)
optim_wrapper = dict(paramwise_cfg=dict(flat_decay_mult=0.0, custom_keys=_base_.slow_backbone))
# Without the panoptic maps that the parent would look for and never read.
train_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='train2017/')))
val_dataloader = dict(dataset=dict(data_prefix=dict(_delete_=True, img='val2017/')))
test_dataloader = val_dataloader
