# UperNet, SwinV2-T, ADE20K, 512 pixels, 160k iterations, layer decay 0.95. Compare: 47.0 mIoU (paper, table 1).
_base_ = [
    '_base_/models/upernet_swinv2_t.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/schedules/ade20k_160k_layer_decay.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)), decode_head=dict(num_classes=150), auxiliary_head=dict(num_classes=150)
)
train_dataloader = dict(batch_size=2)
