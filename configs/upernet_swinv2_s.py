# UperNet, SwinV2-S, ADE20K, as upernet_swinv2_t.
# Compare: Swin V1-S, 47.64 mIoU; no published row for SwinV2 at 512 pixels.
_base_ = './upernet_swinv2_t.py'

model = dict(
    backbone=_base_.swinv2_s,
    decode_head=dict(in_channels=_base_.widths.s),
    auxiliary_head=dict(in_channels=_base_.widths.s[2]),
)
