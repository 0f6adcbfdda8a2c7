# ImageNet for 300 epochs, 16 GPUs x 64 images (paper, appendix A1; config.py of microsoft/Swin-Transformer: AdamW, lr 5e-4
# for 512 images, weight decay 0.05, gradient norm 5, warm-up for 20 epochs, cosine decay to 5e-6 for 512 images).
_base_ = './adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=5.0))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=300, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, begin=0, end=20, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=20, end=300, convert_to_iter_based=True),
]
custom_hooks = [dict(type='swinv2_mm.EpochSeedHook')]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
