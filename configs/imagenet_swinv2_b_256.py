# Classification, SwinV2-B, ImageNet-1K, as imagenet_swinv2_t_256. Compare: 84.2 top-1 (MODELHUB.md).
_base_ = './imagenet_swinv2_t_256.py'

model = dict(backbone=dict(arch='base', drop_path_rate=0.5), head=dict(in_channels=1024))
