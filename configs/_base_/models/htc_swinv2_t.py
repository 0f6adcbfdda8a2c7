# Hybrid Task Cascade with its semantic head on SwinV2-T: MMDetection's Cascade Mask R-CNN, edited into the model of
# mmdet::htc/htc_r50_fpn_1x_coco.py, which can't be inherited without its schedule.
_base_ = ['mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py', '../swinv2.py']

model = dict(
    type='HybridTaskCascade',
    data_preprocessor=dict(pad_mask=False, pad_seg=True),
    backbone=dict(_delete_=True, **_base_.swinv2_t, drop_path_rate=0.2),
    neck=dict(in_channels=_base_.widths.t),
    roi_head=dict(
        type='HybridTaskCascadeRoIHead',
        interleaved=True,
        mask_info_flow=True,
        mask_head=[
            dict(_base_.model.roi_head.mask_head, type='HTCMaskHead', with_conv_res=stage > 0) for stage in range(3)
        ],
        semantic_roi_extractor=dict(_base_.model.roi_head.mask_roi_extractor, featmap_strides=[8]),
        semantic_head=dict(
            type='FusedSemanticHead',
            num_ins=5,
            fusion_level=1,
            seg_scale_factor=1 / 8,
            num_convs=4,
            in_channels=256,
            conv_out_channels=256,
            num_classes=183,
            loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.2),
        ),
    ),
    train_cfg=dict(
        rcnn=[
            dict(stage, assigner=dict(stage.assigner, match_low_quality=True)) for stage in _base_.model.train_cfg.rcnn
        ]
    ),
    test_cfg=dict(rcnn=dict(score_thr=0.001)),
)
