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
    auxiliary_head=dict(num_classes=4, dropout_ratio=0.0, loss_decode=dict(class_weight=class_weight)))
# bfloat16, and norms that open the residual branches faster: what fits into the minutes is the number of iterations.
optim_wrapper = dict(
    type='swinv2_mm.AmpOptimWrapper', optimizer=dict(lr=3e-4),
    paramwise_cfg=dict(custom_keys={f'norm{i}': dict(lr_mult=3.0, decay_mult=0.0) for i in (1, 2)}))
train_cfg = dict(max_epochs=12)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', eta_min=3e-6, by_epoch=True, begin=0, end=12, convert_to_iter_based=True),
]
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=20),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2))
log_processor = dict(by_epoch=True)
