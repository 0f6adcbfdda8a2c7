# ADE20K for 40k iterations of 64 images (paper, appendix, sizes B and L: lr 6e-5); the rest as for 160k. Without layer-
# wise decay of the learning rate: the paper lists that for the ablation with size T alone.
_base_ = './ade20k_160k.py'

optim_wrapper = dict(optimizer=dict(lr=6e-5))
train_cfg = dict(max_iters=40000, val_interval=4000)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=40000),
]
default_hooks = dict(checkpoint=dict(interval=4000))
auto_scale_lr = dict(base_batch_size=64)
