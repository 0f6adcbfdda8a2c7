"""The backbones that are compared: ours, and every peer that imports here. Each takes images and gives its maps."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

DEPTHS = {'tiny': (2, 2, 6, 2), 'small': (2, 2, 18, 2), 'base': (2, 2, 18, 2)}
WIDTHS = {'tiny': 96, 'small': 96, 'base': 128}
# What must import for a peer to be there; Microsoft's code is a checkout whose folder is given.
PEERS = {
    'huggingface': 'transformers',
    'timm': 'timm',
    'torchvision': 'torchvision',
    'mmpretrain': 'mmpretrain.models',
    'microsoft': 'models.swin_transformer_v2',
}


class Maps(nn.Module):
    """A peer's model, and how its feature maps are had."""

    def __init__(self, model: nn.Module, forward: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.model, self.maps = model, forward

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.maps(images))


def available(microsoft: str | None = None) -> list[str]:
    """The peers that import, with why others do not on stderr."""
    if microsoft:
        sys.path.insert(0, microsoft)
    found = []
    for name, module in PEERS.items():
        if name == 'microsoft' and not microsoft:
            continue
        try:
            importlib.import_module(module)
            found.append(name)
        except Exception as error:  # a package that is half there fails in its own ways
            print(f'{name} is left out: {type(error).__name__}: {str(error).splitlines()[0]}', file=sys.stderr)
    return found


def packages(peers: list[str]) -> dict[str, str]:
    """The distributions of peers, by their names."""
    return {name: PEERS[name].partition('.')[0] for name in peers}


def build(
    name: str, arch: str, size: tuple[int, int], window: int, checkpointing: bool = False, **ours: Any
) -> nn.Module:
    """A backbone whose weights were pre-trained with window 8, where the code base can say so.

    Args:
        name: ``'ours'`` or a key of :data:`PEERS`.
        arch: ``'tiny'``, ``'small'`` or ``'base'``.
        size: Height and width of the images in pixels, multiples of 32.
        window: In tokens.
        checkpointing: Compute each block again in the backward pass; not for torchvision and Microsoft.
        **ours: More arguments for our class.
    """
    if name == 'ours':
        from swinv2_mm import SwinTransformerV2

        return SwinTransformerV2(arch, window_size=window, pretrained_window_sizes=8, with_cp=checkpointing, **ours)
    shape = dict(depths=list(DEPTHS[arch]), num_heads=[WIDTHS[arch] // 32 * 2**i for i in range(4)])
    if name == 'huggingface':
        return _huggingface(WIDTHS[arch], shape, size, window, checkpointing)
    if name == 'torchvision':
        return _torchvision(WIDTHS[arch], shape, window)
    if name == 'mmpretrain':
        from mmpretrain.models.backbones import SwinTransformerV2

        return SwinTransformerV2(
            dict(embed_dims=WIDTHS[arch], extra_norm_every_n_blocks=0, **shape),
            img_size=size,
            window_size=window,
            pretrained_window_sizes=[8] * 4,
            out_indices=(0, 1, 2, 3),
            pad_small_map=True,
            with_cp=checkpointing,
        )
    # timm's and Microsoft's, which timm's comes from.
    module = 'timm.models.swin_transformer_v2' if name == 'timm' else PEERS['microsoft']
    model = importlib.import_module(module).SwinTransformerV2(
        size,
        embed_dim=WIDTHS[arch],
        num_classes=0,
        window_size=window,
        pretrained_window_sizes=(8,) * 4,
        **shape,
    )
    if checkpointing:
        model.set_grad_checkpointing()
    del model.norm
    return Maps(model, partial(_stages, model.patch_embed, model.layers))


def _huggingface(
    width: int, shape: dict[str, list[int]], size: tuple[int, int], window: int, checkpointing: bool
) -> nn.Module:
    from transformers import Swinv2Backbone, Swinv2Config

    config = Swinv2Config(
        image_size=size,
        embed_dim=width,
        window_size=window,
        pretrained_window_sizes=[8] * 4,
        out_features=['stage1', 'stage2', 'stage3', 'stage4'],
        **shape,
    )
    model = Swinv2Backbone(config)
    if checkpointing:
        model.gradient_checkpointing_enable()
    return Maps(model, lambda x: model(x).feature_maps)


def _torchvision(width: int, shape: dict[str, list[int]], window: int) -> nn.Module:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    model = SwinTransformer(
        [4, 4],
        width,
        window_size=[window, window],
        stochastic_depth_prob=0.1,
        block=SwinTransformerBlockV2,
        downsample_layer=PatchMergingV2,
        **shape,
    )
    del model.norm, model.head
    return Maps(model, partial(_stages, model.features[0], model.features[1:]))


def _stages(embed: nn.Module, stages: nn.ModuleList, images: Tensor) -> list[Tensor]:
    return [*itertools.accumulate(stages, lambda x, stage: stage(x), initial=embed(images))][1:]
