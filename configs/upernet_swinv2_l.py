# UperNet, SwinV2-L, ADE20K, as upernet_swinv2_t.
# No published row.
_base_ = './upernet_swinv2_t.py'

model = dict(
    backbone=_base_.swinv2_l,
    decode_head=dict(in_channels=_base_.widths.l),
    auxiliary_head=dict(in_channels=_base_.widths.l[2]),
)
