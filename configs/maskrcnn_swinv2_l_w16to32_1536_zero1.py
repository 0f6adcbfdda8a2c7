# Mask R-CNN, SwinV2-L, as maskrcnn_swinv2_b_w16to32_1536, with the optimizer's state divided among the processes
# (ZeRO stage 1; paper, section 3.4). No published row; HTC++ reaches 58.8 box / 51.1 mask AP.
_base_ = ['./maskrcnn_swinv2_b_w16to32_1536.py', '_base_/sharding/zero1.py']

model = dict(backbone=_base_.swinv2_l, neck=dict(in_channels=_base_.widths.l))
train_dataloader = dict(batch_size=1)  # on 64 GPUs; otherwise --auto-scale-lr
