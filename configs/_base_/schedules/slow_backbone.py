# custom_keys that train the backbone with a tenth of the learning rate. Of all keys that a name contains, the longest
# alone counts, and it replaces norm_decay_mult, bias_decay_mult and flat_decay_mult: what `backbone` would let decay is
# named again, in keys that are longer.
slow_backbone = {
    'backbone': dict(lr_mult=0.1),
    **{
        key: dict(lr_mult=0.1, decay_mult=0.0)
        for key in (
            'attn.cpb_mlp',
            'attn.logit_scale',
            'attn.q_bias',
            'attn.v_bias',
            'attn.proj.bias',
            'mlp.fc1.bias',
            'mlp.fc2.bias',
            'norm1.weight',
            'norm1.bias',
            'norm2.weight',
            'norm2.bias',
            'norm3.weight',
            'norm3.bias',
            'backbone.norm',
            'downsample.norm',
            'patch_embed.norm',
            'patch_embed.proj.bias',
        )
    },
}
