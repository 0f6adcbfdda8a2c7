# SimMIM, SwinV2-T, on generated shapes: a short pre-training on two CPU cores. The pictures:
# python tools/make_shapes.py data/shapes_unlabelled --num-train 3000 --seed 1
_base_ = [
    '_base_/models/simmim_swinv2_t.py',
    '_base_/datasets/unlabelled.py',
    '_base_/schedules/simmim_800e.py',
]

model = dict(
    backbone=dict(window_size=8, drop_path_rate=0.0, from_scratch=True),
    # Shapes of 26 to 77 pixels: squares of 32 would hide whole ones. Their backgrounds are smooth, and normalised by
    # their surroundings they would be noise.
    mask_patch_size=16,
    norm_target=None,
)
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(data_root='data/shapes_unlabelled/', data_prefix=dict(img_path='images/training')),
)
train_dataloader['dataset']['pipeline'] = [
    dict(type='LoadImageFromFile'),
    dict(type='swinv2_mm.RandomResizedCrop', scale=(96, 96), crop_ratio_range=(0.45, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='swinv2_mm.PackImages'),
]
optim_wrapper = dict(type='swinv2_mm.AmpOptimWrapper', dtype='auto', optimizer=dict(lr=5e-4))
train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=12, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=16)
default_hooks = dict(logger=dict(interval=20), checkpoint=dict(interval=2, max_keep_ckpts=2))
custom_hooks = [
    dict(type='swinv2_mm.EpochSeedHook'),
    dict(type='swinv2_mm.ReconstructionHook', interval=4),
]
randomness = dict(seed=0)
