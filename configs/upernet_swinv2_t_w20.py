# UperNet, SwinV2-T, window 20, ADE20K. Target: 47.7 mIoU (paper, table 1).
_base_ = './upernet_swinv2_t.py'

model = dict(backbone=dict(window_size=20))
