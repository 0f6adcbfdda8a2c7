# Classification, SwinV2-T, window 8, ImageNet-1K at 256 pixels, 300 epochs, by MMPretrain. Compare: 81.8 top-1
# (microsoft/Swin-Transformer, MODELHUB.md). Drop path as there: 0.2 (T), 0.3 (S), 0.5 (B).
_base_ = [
    '_base_/models/imagenet_swinv2_t.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py',
    '_base_/schedules/imagenet_300e.py',
    'mmpretrain::_base_/default_runtime.py',
]

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
