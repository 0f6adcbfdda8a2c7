"""The released SwinV2 checkpoints: windows, training data and download locations (data, no logic).

Sources: MODELHUB.md and configs/swinv2 of microsoft/Swin-Transformer; ``swin_transformer_v2.py`` of timm,
``swin_transformer.py`` of torchvision; the hub; the README of MMPretrain's ``configs/swin_transformer_v2``.
timm, Hugging Face and MMPretrain distribute Microsoft's weights under other keys. torchvision trained its own.
SimMIM's pre-trained files are not listed: Microsoft's links to them only work with an access signature.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class File:
    """One place that distributes the weights of a release.

    Attributes:
        layout: Its key table: ``microsoft``, ``timm``, ``huggingface``, ``mmpretrain`` or ``torchvision``.
        location: An https URL, or ``hf://owner/name`` for a repository on the Hugging Face hub.
        names: What else this file is called.
    """

    layout: str
    location: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Release:
    """One set of trained weights.

    Attributes:
        name: The official name: Microsoft's file name without suffix, or torchvision's model name.
        arch: The size, a key of ``swinv2_mm.sizes.VARIANTS``.
        image_size: Pixels of the last training.
        window_size: Window per stage in that training, no larger than the feature map of the stage.
        pretrained_window_sizes: Window per stage of the first training, which normalises the position bias.
        data: The data sets of its training, in order.
        top1: Published ImageNet-1K accuracy in percent at ``image_size``; None without a 1K classifier.
        files: Download locations, the trainer's own file first.
        parameters: Published parameters in millions, with a classifier of 1000 classes; None where none are.
        gflops: Published multiply-adds of one image in 1e9 (called FLOPs), with that classifier; None where none are.
    """

    name: str
    arch: str
    image_size: int
    window_size: tuple[int, ...]
    pretrained_window_sizes: tuple[int, ...]
    data: str
    top1: float | None
    files: tuple[File, ...]
    parameters: int | None = None
    gflops: float | None = None


# Data, suffix of Microsoft's names, of timm's and of timm's deprecated ones, pattern of MMPretrain's.
_1K = ('ImageNet-1K', '', 'ms_in1k', '', 'swinv2-{}-w{}_3rdparty_in1k-{}px')
_22K = ('ImageNet-22K', '_22k', 'ms_in22k', '_22k', 'pretrain/swinv2-{}-w{}_3rdparty_in21k-{}px')
_FT = (
    'ImageNet-22K, then 1K',
    '_22kto1k_ft',
    'ms_in22k_ft_in1k',
    '_22kft1k',
    'swinv2-{}-w{}_in21k-pre_3rdparty_in1k-{}px',
)

# Stage 4 is an 8x8 map at 256 pixels, 6x6 at 192 and 12x12 at 384: Microsoft's code shrinks the window to it.
_W8, _W12, _W16, _W24 = (8, 8, 8, 8), (12, 12, 12, 6), (16, 16, 16, 8), (24, 24, 24, 12)

_PARAMETERS = {'tiny': 28, 'small': 50, 'base': 88, 'large': 197}

_MICROSOFT = (
    # size, training, pixels, windows, normaliser, names, top-1, GFLOPs, SHA-256 of MMPretrain's file
    ('tiny', 'window8_256', 256, _W8, _W8, _1K, 81.8, 5.9, 'e318968f'),
    ('small', 'window8_256', 256, _W8, _W8, _1K, 83.7, 11.5, 'b01a4332'),
    ('base', 'window8_256', 256, _W8, _W8, _1K, 84.2, 20.3, '8ff28f2b'),
    ('tiny', 'window16_256', 256, _W16, _W16, _1K, 82.8, 6.6, '9651cdd7'),
    ('small', 'window16_256', 256, _W16, _W16, _1K, 84.1, 12.6, 'b707d206'),
    ('base', 'window16_256', 256, _W16, _W16, _1K, 84.6, 21.8, '5a1886b7'),
    ('base', 'window12_192', 192, _W12, _W12, _22K, None, None, 'f7dc9763'),
    ('large', 'window12_192', 192, _W12, _W12, _22K, None, None, 'd9073fee'),
    ('base', 'window12to16_192to256', 256, _W16, _W12, _FT, 86.2, 21.8, '8d7aa8ad'),
    ('large', 'window12to16_192to256', 256, _W16, _W12, _FT, 86.9, 47.5, 'c40cbed7'),
    ('base', 'window12to24_192to384', 384, _W24, _W12, _FT, 87.1, 54.7, '44eb70f8'),
    ('large', 'window12to24_192to384', 384, _W24, _W12, _FT, 87.6, 115.4, '3b36c165'),
)

_TORCHVISION = (
    # name, size, top-1, SHA-256
    ('swin_v2_t', 'tiny', 82.072, 'b137f0e2'),
    ('swin_v2_s', 'small', 83.712, '637d8ceb'),
    ('swin_v2_b', 'base', 84.112, '781e5279'),
)


def _download(layout: str, url: str, *names: str) -> File:
    """A file that people also call by the last part of its URL, with or without ``.pth``."""
    name = url.rpartition('/')[2]
    return File(layout, url, (name, name.removesuffix('.pth'), *names))


def _microsoft(row: tuple[Any, ...]) -> Release:
    """Spell out a row of Microsoft's table."""
    arch, training, pixels, windows, pretrained, names, top1, gflops, digest = row
    data, suffix, tag, old, mmpretrain = names
    name = f'swinv2_{arch}_patch4_{training}{suffix}'
    hub = f'microsoft/{name.replace("_", "-")}'
    model = f'swinv2_{arch}_{training}'
    timm = dict.fromkeys((f'{model}.{tag}', model, model + old))
    mmpretrain = mmpretrain.format(arch, windows[0], pixels)
    openmmlab = 'https://download.openmmlab.com/mmclassification/v0/swin-v2/'
    files = (
        _download('microsoft', f'https://github.com/SwinTransformer/storage/releases/download/v2.0.0/{name}.pth'),
        File('timm', f'hf://timm/{model}.{tag}', (*timm, *(f'timm/{spelling}' for spelling in timm))),
        File('huggingface', f'hf://{hub}', (hub,)),
        _download('mmpretrain', f'{openmmlab}{mmpretrain}_20220803-{digest}.pth', mmpretrain.rpartition('/')[2]),
    )
    return Release(
        name, arch, pixels, windows, pretrained, data, top1, files, _PARAMETERS[arch] if gflops else None, gflops
    )


def _torchvision(name: str, arch: str, top1: float, digest: str) -> Release:
    """Spell out a row of torchvision's table: all are trained at 256 pixels, their normaliser is their own window."""
    file = _download('torchvision', f'https://download.pytorch.org/models/{name}-{digest}.pth')
    return Release(name, arch, 256, _W8, _W8, _1K[0], top1, (file,))


RELEASES: dict[str, Release] = {
    release.name: release for release in (*map(_microsoft, _MICROSOFT), *(_torchvision(*row) for row in _TORCHVISION))
}
_INDEX = {
    name: (release, file)
    for release in RELEASES.values()
    for file in release.files
    for name in (file.location, *file.names)
} | {name: (release, release.files[0]) for name, release in RELEASES.items()}


def find(name: str) -> tuple[Release, File] | None:
    """The release and the file with a name in any of the code bases, or None.

    A name is an official one, which stands for the trainer's own file; a URL, or its file name with or without
    ``.pth``; timm's with or without tag and ``timm/``; ``owner/name`` or ``hf://owner/name``; MMPretrain's model.
    """
    return _INDEX.get(name)
