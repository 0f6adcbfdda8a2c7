# UperNet for images of about 128 pixels on a few CPU cores: the whole SwinV2-T, narrow heads.
_base_ = './upernet_swinv2_t.py'

norm_cfg = dict(type='BN', requires_grad=True)  # SyncBN needs a GPU
model = dict(
    backbone=dict(window_size=8, pretrained_window_sizes=None, drop_path_rate=0.0, init_cfg=None, from_scratch=True),
    decode_head=dict(channels=64, norm_cfg=norm_cfg),
    auxiliary_head=dict(channels=64, norm_cfg=norm_cfg),
)
