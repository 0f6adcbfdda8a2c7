# UperNet, SwinV2-T, on the generated shapes: from scratch, on two CPU cores.
_base_ = [
    '_base_/models/upernet_swinv2_t_light.py',
    '_base_/datasets/shapes_semantic.py',
    '_base_/schedules/shapes.py',
    'mmseg::_base_/default_runtime.py',
]

# Most pixels are background; without weights the loss is minimal long before the classes are told apart.
class_weight = [0.25, 1.0, 1.0, 1.0]
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    decode_head=dict(num_classes=4, dropout_ratio=0.0, loss_decode=dict(class_weight=class_weight)),
    auxiliary_head=dict(num_classes=4, dropout_ratio=0.0, loss_decode=dict(class_weight=class_weight)),
)
# A higher rate collapses onto the background.
optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=32, val_interval=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='MultiStepLR', milestones=[24, 29], gamma=0.1, by_epoch=True, begin=0, end=32),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20), checkpoint=dict(type='CheckpointHook', interval=2, max_keep_ckpts=2)
)
log_processor = dict(by_epoch=True)
