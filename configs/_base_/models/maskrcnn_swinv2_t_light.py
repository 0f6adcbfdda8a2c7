# Mask R-CNN for images of about 128 pixels on a few CPU cores: the whole SwinV2-T, narrow heads, few proposals.
_base_ = './maskrcnn_swinv2_t.py'

model = dict(
    backbone=dict(window_size=8, pretrained_window_sizes=None, drop_path_rate=0.0, init_cfg=None, from_scratch=True),
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(in_channels=64, fc_out_channels=256),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(in_channels=64, conv_out_channels=64),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.5)),
    ),  # few objects an image: masks learn from positives alone
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)
