# UperNet as MMSegmentation has it, on SwinV2-T.
_base_ = 'mmseg::_base_/models/upernet_swin.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='swinv2_mm.SwinTransformerV2',
        arch='tiny',
        window_size=16,
        # The window of the ImageNet pre-training; it belongs to the weights.
        pretrained_window_sizes=8,
        drop_path_rate=0.3,
        init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint='swinv2_tiny_patch4_window8_256')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
