# The sizes with released weights, for window 16: swinv2_t is a whole backbone, the others are edits of it. A leaf of
# another size inherits the leaf for T and takes one of them, with the widths of its maps for the heads.
swinv2_t = dict(
    type='swinv2_mm.SwinTransformerV2',
    arch='tiny',
    window_size=16,
    # The window of the ImageNet pre-training; it belongs to the weights.
    pretrained_window_sizes=8,
    init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint='swinv2_tiny_patch4_window8_256'),
    from_scratch=False,  # True for a short training with init_cfg=None
)
swinv2_s = dict(arch='small', init_cfg=dict(checkpoint='swinv2_small_patch4_window8_256'))
swinv2_b = dict(arch='base', init_cfg=dict(checkpoint='swinv2_base_patch4_window8_256'))
swinv2_b_22k = dict(
    arch='base',
    pretrained_window_sizes=[12, 12, 12, 6],  # of the first pre-training, not the 16 of the fine-tuning
    init_cfg=dict(checkpoint='swinv2_base_patch4_window12to16_192to256_22kto1k_ft'),
)
swinv2_l = dict(  # from ImageNet-22K, as all released weights of this size
    arch='large',
    pretrained_window_sizes=[12, 12, 12, 6],
    init_cfg=dict(checkpoint='swinv2_large_patch4_window12to16_192to256_22kto1k_ft'),
)
widths = dict(t=[96, 192, 384, 768], s=[96, 192, 384, 768], b=[128, 256, 512, 1024], l=[192, 384, 768, 1536])
