# Classification, SwinV2-S, ImageNet-1K, as imagenet_swinv2_t_256. Compare: 83.7 top-1 (MODELHUB.md).
_base_ = './imagenet_swinv2_t_256.py'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3))
