# Mask R-CNN, SwinV2-G (3 billion parameters), COCO at 1536 pixels, parameters divided among the processes (FSDP2).
# Paper, appendix, HTC++: lr 6e-4, batch 96, 45k iterations; warm-up, steps and the backbone's x0.1 are those of size B.
# No weights of this size have been released, so it starts from random ones. For weights of your own set init_cfg, and
# pretrained_window_sizes to the windows of their first training. No published row; HTC++ reaches 61.7 / 53.3.
_base_ = ['./maskrcnn_swinv2_b_w16to32_1536.py', '_base_/sharding/fsdp2.py']

model = dict(
    backbone=dict(arch='giant', pretrained_window_sizes=None, init_cfg=None),
    neck=dict(in_channels=[512, 1024, 2048, 4096]),
)
train_dataloader = dict(batch_size=1, sampler=dict(type='InfiniteSampler'))  # on 96 GPUs; otherwise --auto-scale-lr
optim_wrapper = dict(optimizer=dict(lr=6e-4))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=45000, val_interval=5000)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=45000, milestones=[39000, 43000], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000, max_keep_ckpts=2))  # some 36 GB each
log_processor = dict(by_epoch=False)
auto_scale_lr = dict(base_batch_size=96)
