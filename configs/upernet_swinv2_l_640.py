# UperNet, SwinV2-L, ADE20K, as upernet_swinv2_b_640. Compare: 55.9 mIoU (paper, with multi-scale test).
_base_ = './upernet_swinv2_b_640.py'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='swinv2_large_patch4_window12to24_192to384_22kto1k_ft')),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
train_dataloader = dict(batch_size=2)  # on 32 GPUs; otherwise --auto-scale-lr
