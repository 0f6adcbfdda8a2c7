# Mask R-CNN, SwinV2-B, COCO at 1536 pixels with window 32, from ImageNet-22k weights fine-tuned with window 16.
# The paper's recipe for HTC++ (appendix: lr 4e-4, batch 64, backbone x0.1, jitter 0.1-2.0), on Mask R-CNN instead:
# no published row.
_base_ = [
    '_base_/models/maskrcnn_swinv2_t.py',
    '_base_/datasets/coco_lsj_1536.py',
    '_base_/schedules/coco_6x_b64.py',
    'mmdet::_base_/default_runtime.py',
]

model = dict(
    backbone=dict(
        **_base_.swinv2_b_22k,
        window_size=32,
        drop_path_rate=0.3,  # Swin V1-B's in detection; the paper does not say
        with_cp=True,
        attn_chunk='auto',
    ),
    neck=dict(in_channels=_base_.widths.b),
)
train_dataloader = dict(batch_size=2)  # on 32 GPUs; otherwise --auto-scale-lr
