# SimMIM, SwinV2-L, 192 pixels: pre-training on pictures without labels. Hyper-parameters of Microsoft's SwinV2-B
# (configs/simmim/simmim_pretrain__swinv2_base__img192_window12__800ep.yaml), 16 GPUs with 128 images each.
_base_ = './simmim_swinv2_t_192.py'

model = dict(backbone=dict(arch='large'))
