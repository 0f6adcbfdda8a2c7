# The generated shapes without their labels: python tools/make_shapes.py data/shapes_unlabelled --num-train 3000 --seed 1
_base_ = './unlabelled.py'

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(
        data_root='data/shapes_unlabelled/',
        data_prefix=dict(img_path='images/training'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='swinv2_mm.RandomResizedCrop', scale=(96, 96), crop_ratio_range=(0.45, 1.0)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='swinv2_mm.PackImages'),
        ],
    ),
)
