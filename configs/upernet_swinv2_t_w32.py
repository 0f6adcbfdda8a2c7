# UperNet, SwinV2-T, window 32, ADE20K. Target: 47.8 mIoU (paper, table 1).
_base_ = './upernet_swinv2_t.py'

model = dict(backbone=dict(window_size=32))
