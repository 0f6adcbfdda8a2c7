# Pictures without labels: all that are in data/unlabelled and below it, augmented as SimMIM does.
custom_imports = dict(imports=['mmcv.transforms'])
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='swinv2_mm.UnlabelledImages',
        data_root='data/unlabelled/',
        data_prefix=dict(img_path=''),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='swinv2_mm.RandomResizedCrop', scale=(192, 192), crop_ratio_range=(0.67, 1.0)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='swinv2_mm.PackImages'),
        ],
    ),
)
