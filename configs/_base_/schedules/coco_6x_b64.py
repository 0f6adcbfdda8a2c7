# COCO for large models: learning rate 4e-4 for 64 images, the backbone's a tenth of it (paper, appendix, HTC++ of the
# sizes B and L). Length and steps are those of Swin V1's HTC++: 72 epochs, steps after 63 and 69.
_base_ = ['./coco_1x.py', './slow_backbone.py']

optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys=_base_.slow_backbone))
train_cfg = dict(max_epochs=72, val_interval=6)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=72, by_epoch=True, milestones=[63, 69], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=64)
