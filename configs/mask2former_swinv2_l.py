# Mask2Former for instances, SwinV2-L, COCO, 100 epochs, 200 queries: MMDetection's Swin V1-L recipe, which it has for
# panoptic segmentation only (52.2 box / 48.5 mask AP there). No published row.
_base_ = './mask2former_swinv2_t.py'

model = dict(backbone=_base_.swinv2_l, panoptic_head=dict(num_queries=200, in_channels=_base_.widths.l))
train_dataloader = dict(batch_size=1)  # on 16 GPUs; otherwise --auto-scale-lr
train_cfg = dict(max_iters=737500, dynamic_intervals=[(735001, 737500)])
param_scheduler = dict(end=737500, milestones=[655556, 710184])
