# HTC++, SwinV2-L, as htcpp_swinv2_b_w16to32_1536 with what is missing there; it needs COCO-Stuff, too.
# Target: 58.8 box / 51.1 mask AP (paper, single-scale test with window 32).
_base_ = './htcpp_swinv2_b_w16to32_1536.py'

model = dict(backbone=_base_.swinv2_l, neck=dict(in_channels=_base_.widths.l))
train_dataloader = dict(batch_size=1)  # on 64 GPUs; otherwise --auto-scale-lr
