# UperNet, SwinV2-B, ADE20K, 640 pixels with window 40, 40k iterations, from ImageNet-22k weights fine-tuned with
# window 24 (paper, appendix: lr 6e-5, batch 64, drop path 0.3).
_base_ = [
    '_base_/models/upernet_swinv2_t.py',
    'mmseg::_base_/datasets/ade20k_640x640.py',
    'mmseg::_base_/default_runtime.py',
    '_base_/schedules/ade20k_40k_b64.py',
]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        arch='base',
        window_size=40,
        pretrained_window_sizes=[12, 12, 12, 6],  # of the first pre-training, not the 24 of the fine-tuning
        drop_path_rate=0.3,
        with_cp=True,
        attn_chunk='auto',
        init_cfg=dict(checkpoint='swinv2_base_patch4_window12to24_192to384_22kto1k_ft'),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024], num_classes=150),
    auxiliary_head=dict(in_channels=512, num_classes=150),
    test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(426, 426)),
)
train_dataloader = dict(batch_size=4)  # on 16 GPUs; otherwise --auto-scale-lr
