# ADE20K for 160k iterations with layer-wise learning-rate decay (paper, appendix: 0.95 in the ablation).
_base_ = './ade20k_160k.py'

optim_wrapper = dict(constructor='swinv2_mm.LayerDecayOptimWrapperConstructor', paramwise_cfg=dict(decay_rate=0.95))
