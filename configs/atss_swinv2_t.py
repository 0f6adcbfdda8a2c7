# ATSS, SwinV2-T, COCO 1x, with the optimizer of maskrcnn_swinv2_t. No published row.
_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py', '_base_/swinv2.py']

model = dict(
    # The neck starts at the second map; a first one that nothing uses would stop distributed training.
    backbone=dict(_delete_=True, **_base_.swinv2_t, out_indices=(1, 2, 3), drop_path_rate=0.2),
    neck=dict(in_channels=_base_.widths.t[1:], start_level=0),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        flat_decay_mult=0.0,  # norms and biases
        custom_keys={key: dict(decay_mult=0.0) for key in ('cpb_mlp', 'logit_scale', 'bbox_head.scales')},
    ),
)
