# COCO for large models: learning rate 4e-4 for 64 images, the backbone's a tenth of it (paper, appendix, HTC++ of the
# sizes B and L). Length and steps are those of Swin V1's HTC++: 72 epochs, steps after 63 and 69.
_base_ = './coco_1x.py'

optim_wrapper = dict(
    optimizer=dict(lr=4e-4),
    paramwise_cfg=dict(
        # Of all keys that a name contains, the longest alone counts, and it replaces norm_decay_mult and
        # bias_decay_mult: what `backbone` would let decay is named again, in keys that are longer.
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            **{
                key: dict(lr_mult=0.1, decay_mult=0.0)
                for key in ('attn.cpb_mlp', 'attn.logit_scale', 'attn.q_bias', 'attn.v_bias', 'attn.proj.bias',
                            'mlp.fc1.bias', 'mlp.fc2.bias', 'norm1.weight', 'norm1.bias', 'norm2.weight', 'norm2.bias',
                            'norm3.weight', 'norm3.bias', 'backbone.norm', 'downsample.norm', 'patch_embed.norm',
                            'patch_embed.proj.bias')
            }
        }))
train_cfg = dict(max_epochs=72, val_interval=6)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='MultiStepLR', begin=0, end=72, by_epoch=True, milestones=[63, 69], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=64)
