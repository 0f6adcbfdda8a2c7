# HTC++, SwinV2-B, COCO at 1536 pixels with window 32, from ImageNet-22k weights fine-tuned with window 16 (paper,
# appendix: lr 4e-4, batch 64, backbone x0.1, jitter 0.1-2.0). No published row.
# HTC++ is HTC with InstaBoost, multi-scale training, 72 epochs, soft-NMS and a global self-attention layer after the
# last stage (Swin V1, appendix A2.2). Missing here: InstaBoost, which needs a package of its own (instaboostfast), and
# the self-attention layer, whose code is not released.
# The semantic head needs COCO-Stuff: stuffthingmaps_trainval2017.zip (https://github.com/nightrome/cocostuff),
# unpacked in data/coco/stuffthingmaps.
_base_ = [
    '_base_/models/htc_swinv2_t.py',
    '_base_/datasets/coco_lsj_1536.py',
    '_base_/schedules/coco_6x_b64.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(**_base_.swinv2_b_22k, window_size=32, drop_path_rate=0.3, with_cp=True, attn_chunk='auto'),
    neck=dict(in_channels=_base_.widths.b),
    test_cfg=dict(rcnn=dict(nms=dict(type='soft_nms'))),
)
train_pipeline = (
    _base_.train_pipeline[:1]
    + [
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True, with_seg=True),
    ]
    + _base_.train_pipeline[2:]
)
train_dataloader = dict(  # on 32 GPUs; otherwise --auto-scale-lr
    batch_size=2, dataset=dict(data_prefix=dict(seg='stuffthingmaps/train2017/'), pipeline=train_pipeline)
)
