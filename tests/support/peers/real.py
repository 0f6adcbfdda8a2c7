"""The real models of timm, torchvision and mmpretrain, for machines where they import."""

import torch

from support.peers import coords_table

DEPTHS, HEADS = (2, 2, 3, 2), (1, 2, 4, 8)


def build(
    name,
    image_size,
    window,
    pretrained=None,
    embed=16,
    classes=10,
    depths=None,
    heads=None,
    extra_norm=0,
    pad_small_map=False,
):
    """The peer's classifier, and where the maps come out: four stages, then the final norm."""
    depths, heads = depths or DEPTHS, heads or HEADS
    if name == 'timm':
        from timm.models.swin_transformer_v2 import SwinTransformerV2

        model = SwinTransformerV2(
            image_size,
            embed_dim=embed,
            depths=depths,
            num_heads=heads,
            num_classes=classes,
            window_size=window,
            pretrained_window_sizes=pretrained or (0, 0, 0, 0),
        )
        return model, [*model.layers, model.norm]
    if name == 'torchvision':
        from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

        model = SwinTransformer(
            [4, 4],
            embed,
            depths,
            heads,
            [window, window],
            num_classes=classes,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
        return model, [*(model.features[i] for i in (1, 3, 5, 7)), model.norm]
    from mmpretrain.models import ImageClassifier

    arch = dict(embed_dims=embed, depths=depths, num_heads=heads, extra_norm_every_n_blocks=extra_norm)
    model = ImageClassifier(
        dict(
            type='SwinTransformerV2',
            arch=arch,
            img_size=image_size,
            window_size=window,
            pad_small_map=pad_small_map,
            pretrained_window_sizes=pretrained or (0, 0, 0, 0),
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=classes, in_channels=8 * embed),
    )
    return model, [*model.backbone.stages, model.backbone.norm3]


def run(model, outputs, image):
    """What comes out of the modules, as ``(B, h, w, C)`` or ``(B, h * w, C)``."""
    maps = []
    hooks = [module.register_forward_hook(lambda module, args, out: maps.append(out)) for module in outputs]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    return [out[0] if isinstance(out, tuple) else out for out in maps]  # mmpretrain: the tokens, and the size


def real_features(name, state, image, window):
    """As ``features_from_keys``, computed by the real model that has these tensors."""

    def depth(stage):
        starts = (f'layers.{stage}.blocks.', f'features.{2 * stage + 1}.', f'backbone.stages.{stage}.blocks.')
        return len({key for key in state if key.startswith(starts) and key.endswith('logit_scale')})

    heads = [value.shape[0] for key, value in state.items() if key.endswith('logit_scale')]
    embed = next(value.shape[0] for value in state.values() if value.ndim == 4)
    depths = [depth(stage) for stage in range(4)]
    starts = [sum(depths[:stage]) for stage in range(4)]
    model, outputs = build(
        name,
        image.shape[2:],
        window if name == 'mmpretrain' else max(window),
        embed=embed,
        classes=1000,
        depths=depths,
        heads=[heads[start] for start in starts],
    )
    model = model.to(image.dtype).eval()  # first, or loading would round the weights
    left = model.load_state_dict(state, strict=False)
    assert not left.unexpected_keys and all('relative_' in k or 'attn_mask' in k for k in left.missing_keys), left
    for key, table in model.named_buffers():
        if key.endswith('relative_coords_table'):  # made in float32, for its own window
            own = [(n + 1) // 2 for n in table.shape[1:3]]
            table.copy_(coords_table(own, own))
    *maps, final = run(model, outputs, image)
    sides = [image.shape[2] // 4 // 2**stage for stage in range(4)]
    square = [
        x.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        for x, side in zip([*maps, final], [*sides, sides[-1]], strict=True)
    ]
    return square[:4], square[4]
