# SimMIM's schedule for SwinV2, of Microsoft's simmim_pretrain__swinv2_base__img192_window12__800ep.yaml: 1e-4 for 512
# images, scaled to their batch of 2048; 800 epochs, a tenth of the rate from epoch 700 on, gradients clipped at 5.
_base_ = './adamw.py'

optim_wrapper = dict(
    optimizer=dict(lr=4e-4),
    clip_grad=dict(max_norm=5.0),
    paramwise_cfg=dict(custom_keys={'mask_token': dict(decay_mult=0.0)}),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=800)
val_cfg, val_dataloader, val_evaluator = None, None, None
test_cfg, test_dataloader, test_evaluator = None, None, None
param_scheduler = [
    dict(type='LinearLR', start_factor=0.005, by_epoch=True, begin=0, end=10, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[700], gamma=0.1, by_epoch=True, begin=0, end=800),
]
auto_scale_lr = dict(enable=False, base_batch_size=2048)
default_scope = 'mmengine'
env_cfg = dict(cudnn_benchmark=True)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=5, max_keep_ckpts=3),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='swinv2_mm.EpochSeedHook'),
    dict(type='swinv2_mm.ReconstructionHook', interval=50),
]
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends)
log_processor = dict(by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
