"""The backbones that are compared: ours, and every peer that imports here. Each takes images and gives its maps."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
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
    embed, depths = WIDTHS[arch], DEPTHS[arch]
    heads = [embed // 32 * 2**i for i in range(4)]
    if name == 'ours':
        from swinv2_mm import SwinTransformerV2

        return SwinTransformerV2(arch, window_size=window, pretrained_window_sizes=8, with_cp=checkpointing, **ours)
    if name == 'huggingface':
        from transformers import Swinv2Backbone, Swinv2Config

        model = Swinv2Backbone(
            Swinv2Config(
                image_size=size,
                embed_dim=embed,
                depths=list(depths),
                num_heads=heads,
                window_size=window,
                pretrained_window_sizes=[8] * 4,
                out_features=['stage1', 'stage2', 'stage3', 'stage4'],
            )
        )
        if checkpointing:
            model.gradient_checkpointing_enable()
        return Maps(model, lambda x: model(x).feature_maps)
    if name == 'mmpretrain':
        from mmpretrain.models.backbones import SwinTransformerV2

        return SwinTransformerV2(
            dict(embed_dims=embed, depths=list(depths), num_heads=heads, extra_norm_every_n_blocks=0),
            img_size=size,
            window_size=window,
            pretrained_window_sizes=[8] * 4,
            out_indices=(0, 1, 2, 3),
            pad_small_map=True,
            with_cp=checkpointing,
        )
    if name == 'torchvision':
        from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

        model = SwinTransformer(
            [4, 4],
            embed,
            list(depths),
            heads,
            [window, window],
            stochastic_depth_prob=0.1,
            block=SwinTransformerBlockV2,
            downsample_layer=PatchMergingV2,
        )
        del model.norm, model.head
        return Maps(model, partial(_stages, model.features[0], model.features[1:]))
    if name == 'timm':
        from timm.models.swin_transformer_v2 import SwinTransformerV2
    else:
        from models.swin_transformer_v2 import SwinTransformerV2
    model = SwinTransformerV2(
        size,
        embed_dim=embed,
        depths=depths,
        num_heads=heads,
        num_classes=0,
        window_size=window,
        pretrained_window_sizes=(8,) * 4,
    )
    if checkpointing:
        model.set_grad_checkpointing()
    del model.norm
    return Maps(model, partial(_stages, model.patch_embed, model.layers))


def _stages(embed: nn.Module, stages: nn.ModuleList, images: Tensor) -> list[Tensor]:
    return [*itertools.accumulate(stages, lambda x, stage: stage(x), initial=embed(images))][1:]


class PeakMemory:
    """Bytes of resident memory that this process takes at its peak, above what it takes now.

    Not ``ru_maxrss``: a child starts with its parent's.
    """

    def __init__(self) -> None:
        Path('/proc/self/clear_refs').write_text('5')  # resets VmHWM to the resident size
        self.before = self._high_water()

    def above(self) -> int:
        return self._high_water() - self.before

    @staticmethod
    def _high_water() -> int:
        line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024


def report(
    growing: Iterator[dict[str, Any]],
    show: Callable[[dict], None],
    plot: Callable[[dict, Path], None],
    json_file: str | None,
    plot_file: str | None,
) -> None:
    """Write a report each time that it has grown, so that a run that is stopped leaves what it measured; then show it.

    Args:
        growing: The report after each measurement.
        show, plot: What prints it, and what draws it into a file.
        json_file, plot_file: Where to; None for nowhere.
    """
    command = ' '.join(['python', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])
    for found in growing:
        found = dict(command=command, **found)
        if json_file:
            path = Path(json_file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f'{path.name}.part').write_text(json.dumps(found, indent=1) + '\n')
            path.with_name(f'{path.name}.part').replace(path)
    show(found)
    if plot_file:
        plot(found, Path(plot_file))


def kind_of_processor() -> str:
    """What decides which code is fast here: the widest vectors that torch uses, and whether there is bfloat16."""
    import torch

    from swinv2_mm.models.kernels.choose import has_arithmetic
    from swinv2_mm.models.kernels.cpp import instruction_sets

    vectors = {'avx512': 'AVX-512', 'avx2': 'AVX2', 'neon': 'NEON'}[instruction_sets()[0]] if instruction_sets() else ''
    return f'{vectors or torch.backends.cpu.get_cpu_capability()}, bfloat16: {has_arithmetic(torch.bfloat16)}'


def about(peers: list[str]) -> dict[str, Any]:
    """Hardware and versions."""
    import torch

    import swinv2_mm

    cpu = next(
        (
            line.partition(':')[2].strip()
            for line in Path('/proc/cpuinfo').read_text().splitlines()
            if line.startswith('model name')
        ),
        platform.machine(),
    )
    found = dict(
        cpu=cpu,
        kind=kind_of_processor(),
        cores=len(os.sched_getaffinity(0)),
        capability=torch.backends.cpu.get_cpu_capability(),
        python=platform.python_version(),
        torch=torch.__version__,
        swinv2_mm=swinv2_mm.__version__,
    )
    if torch.cuda.is_available():
        found['gpu'] = torch.cuda.get_device_name()
    for name in peers:
        try:
            found[name] = metadata.version(PEERS[name].partition('.')[0])
        except metadata.PackageNotFoundError:
            found[name] = 'a checkout'
    return found
