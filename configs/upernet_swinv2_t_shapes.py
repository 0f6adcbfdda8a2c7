# UperNet, SwinV2-T, on the generated shapes: from scratch, on two CPU cores.
_base_ = [
    '_base_/models/upernet_swinv2_t_light.py',
    '_base_/datasets/shapes_semantic.py',
    '_base_/schedules/shapes.py',
    'mmseg::_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    decode_head=dict(num_classes=4),
    auxiliary_head=dict(num_classes=4))
log_processor = dict(by_epoch=True)
