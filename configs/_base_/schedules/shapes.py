# About fourteen minutes from scratch on two CPU cores with bfloat16 arithmetic, which dtype='auto' takes; up to twice as
# long without it, in float32. Few images, seen often: what a transformer learns in minutes, it learns sooner from
# examples that return.
_base_ = './adamw.py'

optim_wrapper = dict(type='swinv2_mm.AmpOptimWrapper', dtype='auto', optimizer=dict(lr=4e-4))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=26, val_interval=9)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', milestones=[21, 24], gamma=0.1, by_epoch=True, begin=0, end=26),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
custom_hooks = [dict(type='swinv2_mm.EpochSeedHook')]
randomness = dict(seed=0)
