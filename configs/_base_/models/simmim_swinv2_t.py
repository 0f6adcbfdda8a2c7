# SimMIM with SwinV2-T for images of 192 pixels, as Microsoft pre-trains SwinV2-B.
model = dict(
    type='swinv2_mm.SimMIM',
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    # The last map has 6 x 6 tokens. A window that is larger is shrunk to it, but would normalise its position bias by 12.
    backbone=dict(
        type='swinv2_mm.SwinTransformerV2', arch='tiny', window_size=[12, 12, 12, 6], drop_path_rate=0.1, init_cfg=None
    ),
    mask_patch_size=32,
    mask_ratio=0.6,
    norm_target=47,
)
