# UperNet, SwinV2-B, ADE20K, as upernet_swinv2_t.
# Compare: Swin V1-B, 48.13 mIoU; no published row for SwinV2 at 512 pixels.
_base_ = './upernet_swinv2_t.py'

model = dict(
    backbone=_base_.swinv2_b,
    decode_head=dict(in_channels=_base_.widths.b),
    auxiliary_head=dict(in_channels=_base_.widths.b[2]),
)
