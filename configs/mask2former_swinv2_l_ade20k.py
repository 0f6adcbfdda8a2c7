# Mask2Former for semantic segmentation, SwinV2-L, ADE20K, 640 pixels, 160k iterations: MMSegmentation's recipe for Swin
# V1-L (56.01 mIoU there). No published row for SwinV2.
_base_ = './mask2former_swinv2_t_ade20k.py'

crop_size = (640, 640)
model = dict(
    data_preprocessor=dict(size=crop_size), backbone=_base_.swinv2_l, decode_head=dict(in_channels=_base_.widths.l)
)
train_pipeline = (
    _base_.train_pipeline[:2]
    + [
        dict(
            type='RandomChoiceResize',
            scales=[64 * tenths for tenths in range(5, 21)],
            resize_type='ResizeShortestEdge',
            max_size=2560,
        ),
        dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    ]
    + _base_.train_pipeline[4:]
)
test_pipeline = (
    _base_.test_pipeline[:1] + [dict(type='Resize', scale=(2560, 640), keep_ratio=True)] + _base_.test_pipeline[2:]
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
