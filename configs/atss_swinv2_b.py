# ATSS, SwinV2-B, COCO 1x, as atss_swinv2_t. No published row.
_base_ = './atss_swinv2_t.py'

model = dict(backbone=dict(**_base_.swinv2_b, drop_path_rate=0.3), neck=dict(in_channels=_base_.widths.b[1:]))
