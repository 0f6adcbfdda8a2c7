# DINO with five scales, SwinV2-L, COCO, 12 epochs: MMDetection's Swin V1-L recipe (57.2 box AP there). No published row
# for SwinV2.
_base_ = './dino_swinv2_t.py'

model = dict(
    num_feature_levels=5,
    backbone=dict(**_base_.swinv2_l, out_indices=(0, 1, 2, 3), with_cp=True),
    neck=dict(in_channels=_base_.widths.l, num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
