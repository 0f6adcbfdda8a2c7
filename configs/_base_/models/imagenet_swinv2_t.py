# A classifier of ImageNet's 1000 classes as MMPretrain has it, on SwinV2-T, from random weights.
_base_ = 'mmpretrain::_base_/models/swin_transformer_v2/tiny_256.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='swinv2_mm.SwinTransformerV2',
        arch='tiny',
        window_size=8,
        out_indices=(3,),
        drop_path_rate=0.2,
    ),
    # MMPretrain initialises the whole model, and so sets the norms at the end of the residual branches to 1; in the
    # paper they start at 0. The backbone initialises itself, here is what the head needs.
    init_cfg=None,
    head=dict(
        _delete_=True,
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
)
