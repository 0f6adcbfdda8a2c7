# AdamW as SwinV2 is fine-tuned: no weight decay on the position bias MLP, the logit scales, norms and biases.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys={
            'cpb_mlp': dict(decay_mult=0.0),
            'logit_scale': dict(decay_mult=0.0),
            # bias_decay_mult knows parameters called `bias` only
            'q_bias': dict(decay_mult=0.0),
            'v_bias': dict(decay_mult=0.0),
        },
    ),
)
