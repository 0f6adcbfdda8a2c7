# Ten minutes from scratch on two CPU cores.
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=4e-4))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=4e-6, by_epoch=True, begin=0, end=4, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
custom_hooks = [dict(type='swinv2_mm.EpochSeedHook')]
randomness = dict(seed=0)
