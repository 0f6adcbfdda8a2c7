# UperNet as MMSegmentation has it, on SwinV2-T.
_base_ = ['mmseg::_base_/models/upernet_swin.py', '../swinv2.py']

model = dict(
    backbone=dict(_delete_=True, **_base_.swinv2_t, drop_path_rate=0.3),
    decode_head=dict(in_channels=_base_.widths.t),
    auxiliary_head=dict(in_channels=_base_.widths.t[2]),
)
