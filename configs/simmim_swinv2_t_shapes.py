# SimMIM, SwinV2-T, on the generated shapes: a short pre-training on two CPU cores.
_base_ = [
    '_base_/models/simmim_swinv2_t.py',
    '_base_/datasets/shapes_unlabelled.py',
    '_base_/schedules/simmim_800e.py',
]

model = dict(
    backbone=dict(window_size=8, drop_path_rate=0.0, from_scratch=True),
    # Shapes of 26 to 77 pixels: squares of 32 would hide whole ones. Their backgrounds are smooth, and normalised by
    # their surroundings they would be noise.
    mask_patch_size=16,
    norm_target=None,
)
optim_wrapper = dict(type='swinv2_mm.AmpOptimWrapper', dtype='auto', optimizer=dict(lr=5e-4))
train_cfg = dict(max_epochs=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=2, max_keep_ckpts=2))
custom_hooks = [dict(type='swinv2_mm.EpochSeedHook'), dict(type='swinv2_mm.ReconstructionHook', interval=2)]
randomness = dict(seed=0)
