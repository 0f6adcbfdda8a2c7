"""Read the size of a model and its windows off the weights, and check every tensor against that size."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from swinv2_mm.checkpoints.windows import Pair, Windows
from swinv2_mm.errors import UserError
from swinv2_mm.sizes import VARIANTS

CPB_HIDDEN = 512
# The entry of a backbone's state_dict that holds its pretrained windows: (stages, 2), rows and columns.
PRETRAINED_KEY = 'pretrained_windows'


@dataclass(frozen=True)
class Geometry:
    """The arguments of :class:`swinv2_mm.SwinTransformerV2` that shape its parameters.

    Attributes:
        embed_dims: Channels of the first stage.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        in_channels: Channels of the image.
        patch_size: Side of a patch, in pixels.
        mlp_ratio: Width of the MLP relative to the channels.
        qkv_bias: Whether queries and values have a bias.
        extra_norm_every: Blocks per extra norm; 0 for none.
    """

    embed_dims: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    in_channels: int
    patch_size: int
    mlp_ratio: float
    qkv_bias: bool
    extra_norm_every: int

    @property
    def arch(self) -> str | None:
        """The name of the published size; None for another size."""
        sizes = (
            name
            for name, size in VARIANTS.items()
            if (size.embed_dims, size.depths, size.num_heads, size.extra_norm_every)
            == (self.embed_dims, self.depths, self.num_heads, self.extra_norm_every)
        )
        return next(sizes, None)

    def arguments(self) -> dict[str, object]:
        """Keyword arguments that build the backbone."""
        size: dict[str, object] = {'arch': self.arch}
        if self.arch is None:
            # Only the two largest sizes have extra norms; a free size inherits them from there.
            base = 'huge' if self.extra_norm_every else 'tiny'
            size = dict(arch=base, embed_dims=self.embed_dims, depths=self.depths, num_heads=self.num_heads)
        return dict(
            size,
            in_channels=self.in_channels,
            patch_size=self.patch_size,
            mlp_ratio=self.mlp_ratio,
            qkv_bias=self.qkv_bias,
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every learned tensor of the backbone, without the output norms."""
        C = self.embed_dims
        shapes: dict[str, tuple[int, ...]] = {
            'patch_embed.proj.weight': (C, self.in_channels, self.patch_size, self.patch_size),
            'patch_embed.proj.bias': (C,),
            **_norm('patch_embed.norm', C),
        }
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if i:
                C *= 2
                shapes[f'stages.{i}.downsample.reduction.weight'] = (C, 2 * C)
                shapes |= _norm(f'stages.{i}.downsample.norm', C)
            for j in range(depth):
                shapes |= self._block(f'stages.{i}.blocks.{j}.', C, heads, j)
        return shapes

    def _block(self, block: str, C: int, heads: int, index: int) -> dict[str, tuple[int, ...]]:
        hidden = int(C * self.mlp_ratio)
        biases = {f'{block}attn.{name}': (C,) for name in ('q_bias', 'v_bias')} if self.qkv_bias else {}
        extra = self.extra_norm_every > 0 and (index + 1) % self.extra_norm_every == 0
        return {
            f'{block}attn.qkv.weight': (3 * C, C),
            **biases,
            f'{block}attn.logit_scale': (heads, 1, 1),
            f'{block}attn.cpb_mlp.0.weight': (CPB_HIDDEN, 2),
            f'{block}attn.cpb_mlp.0.bias': (CPB_HIDDEN,),
            f'{block}attn.cpb_mlp.2.weight': (heads, CPB_HIDDEN),
            f'{block}attn.proj.weight': (C, C),
            f'{block}attn.proj.bias': (C,),
            **_norm(f'{block}norm1', C),
            **_norm(f'{block}norm2', C),
            **(_norm(f'{block}norm3', C) if extra else {}),
            f'{block}mlp.fc1.weight': (hidden, C),
            f'{block}mlp.fc1.bias': (hidden,),
            f'{block}mlp.fc2.weight': (C, hidden),
            f'{block}mlp.fc2.bias': (C,),
        }


def _norm(name: str, C: int) -> dict[str, tuple[int, ...]]:
    return {f'{name}.weight': (C,), f'{name}.bias': (C,)}


def read_geometry(weights: Mapping[str, Tensor]) -> Geometry:
    """Read the size of the model off its weights, in our names, and check every tensor against it.

    Raises:
        UserError: Tensors are missing, unexpected, of a wrong shape, not floating-point, or hold NaN or infinity;
            the message lists them.
    """
    weights = {key: tensor for key, tensor in weights.items() if key != PRETRAINED_KEY}
    geometry = _guess(weights)
    wanted = geometry.shapes()
    norms = {
        f'norm{i}.{leaf}': (geometry.embed_dims * 2**i,)
        for i in range(len(geometry.depths))
        for leaf in ('weight', 'bias')
    }
    halves = [key for key in norms if key in weights and _other_half(key) not in weights]
    known = wanted | norms
    faults = {
        'are missing': [key for key in wanted if key not in weights] + [_other_half(key) for key in halves],
        'belong to no part of it': [key for key in weights if key not in known],
        'have a shape that does not fit the others': [
            f'{key} {tuple(tensor.shape)} instead of {known[key]}'
            for key, tensor in weights.items()
            if key in known and tuple(tensor.shape) != known[key]
        ],
        'hold no floating-point numbers': [key for key, t in weights.items() if not t.is_floating_point()],
    }
    faults = {what: keys for what, keys in faults.items() if keys}
    if not faults:
        broken = [key for key, tensor in weights.items() if not _is_finite(tensor)]
        faults = {'hold NaN or infinity': broken} if broken else {}
    if faults:
        raise UserError(
            'no complete SwinV2 backbone: '
            + '; '.join(f'{len(keys)} tensors {what}: {shorten(keys)}' for what, keys in faults.items())
        )
    return geometry


def _guess(weights: Mapping[str, Tensor]) -> Geometry:
    """Read the size off a few tensors; the caller checks the others."""
    places = (re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', key) for key in weights)
    blocks = sorted({(int(place[1]), int(place[2])) for place in places if place})
    stages = range(blocks[-1][0] + 1) if blocks else range(0)
    depths = tuple(1 + max((j for i, j in blocks if i == stage), default=0) for stage in stages)
    conv = _shaped(weights, 'patch_embed.proj.weight', 4)
    hidden = _shaped(weights, 'stages.0.blocks.0.mlp.fc1.bias', 1)
    extra = sorted(int(m[1]) for key in weights if (m := re.match(r'stages\.\d+\.blocks\.(\d+)\.norm3\.', key)))
    return Geometry(
        embed_dims=conv[0],
        depths=depths,
        num_heads=tuple(_shaped(weights, f'stages.{i}.blocks.0.attn.logit_scale', 3)[0] for i in stages),
        in_channels=conv[1],
        patch_size=conv[2],
        mlp_ratio=hidden[0] / conv[0],
        qkv_bias=any(key.endswith(('.q_bias', '.v_bias')) for key in weights),
        extra_norm_every=extra[0] + 1 if extra else 0,
    )


def _shaped(weights: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in weights:
        raise UserError(f'no complete SwinV2 backbone: {key} is missing.')
    shape = tuple(weights[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise UserError(f'no SwinV2 backbone: {key} has the shape {shape}; {ndim} dimensions are expected.')
    return shape


def _other_half(norm: str) -> str:
    start, _, leaf = norm.rpartition('.')
    return f'{start}.{"bias" if leaf == "weight" else "weight"}'


def _is_finite(tensor: Tensor) -> bool:
    """NaN and infinity show in the minimum or the maximum, which need no mask of the tensor's size."""
    return tensor.numel() == 0 or all(math.isfinite(bound) for bound in torch.aminmax(tensor))


def shorten(keys: list[str], most: int = 6) -> str:
    """The first few of a list, and the number of the others."""
    return ', '.join(keys[:most]) + (f' and {len(keys) - most} more' if len(keys) > most else '')


def read_windows(tables: Mapping[str, Tensor]) -> tuple[Windows, Windows] | None:
    """Read the windows and the pretrained windows per stage, ``(rows, columns)``, off the coordinate tables.

    Args:
        tables: By our keys, ``stages.{i}.blocks.{j}.attn.relative_coords_table``, each ``(1, 2 Wh - 1, 2 Ww - 1, 2)``.

    Returns:
        Windows and pretrained windows; None if a stage has no table.

    Raises:
        UserError: A table is not one of SwinV2, or the blocks of a stage disagree.
    """
    found: dict[int, tuple[Pair, Pair]] = {}
    for key, table in tables.items():
        stage = int(key.split('.')[1])
        windows = _window_of(key, table)
        if found.setdefault(stage, windows) != windows:
            raise UserError(
                f'{key} is for a window of {windows[0]} and a pretrained window of {windows[1]}, another '
                f'block of the stage for {found[stage][0]} and {found[stage][1]}.'
            )
    if not found or sorted(found) != list(range(max(found) + 1)):
        return None
    windows, pretrained = zip(*(found[i] for i in sorted(found)), strict=True)
    return windows, pretrained


def told_windows(key: str, tensor: Tensor) -> Windows:
    """The pretrained windows in a state_dict of this backbone, ``(rows, columns)`` per stage.

    Raises:
        UserError: The tensor holds no windows.
    """
    if tensor.ndim != 2 or tensor.shape[1] != 2 or tensor.is_floating_point() or not len(tensor) or tensor.min() < 1:
        raise UserError(f'{key} does not hold pretrained windows: whole numbers from 1, (stages, 2).')
    return tuple((rows, columns) for rows, columns in tensor.tolist())


def _window_of(key: str, table: Tensor) -> tuple[Pair, Pair]:
    """The inverse of the log-spaced coordinates (paper, equation 4, with Microsoft's normalisation).

    The last of ``2 w - 1`` offsets has the coordinate ``c`` with ``8 (w - 1) / (p - 1) = 2 ** (3 c) - 1``.
    """
    shape = tuple(table.shape)
    if len(shape) != 4 or shape[0] != 1 or shape[3] != 2 or not shape[1] % 2 or not shape[2] % 2:
        raise UserError(f'{key} has the shape {shape}; (1, 2 Wh - 1, 2 Ww - 1, 2) is expected.')
    exact = table[0].double()
    axes = exact[:, 0, 0], exact[0, :, 1]
    tolerance = 1e-4 if table.dtype in (torch.float32, torch.float64) else 2e-2
    window, pretrained, coords = [], [], []
    for axis in axes:
        w = (len(axis) + 1) // 2
        largest = float(axis[-1])
        ratio = 2 ** (3 * largest) - 1 if 0 < largest < 16 else 0.0
        p = round(1 + 8 * (w - 1) / ratio) if ratio else 1
        offsets = 8 * torch.arange(1 - w, w, dtype=torch.float64) / max(p - 1, 1)
        coords.append(offsets.sign() * offsets.abs().add(1).log2() / 3)
        window.append(w)
        pretrained.append(p)
    known = torch.stack(torch.meshgrid(*coords, indexing='ij'), dim=-1)
    if not torch.allclose(exact, known, rtol=0, atol=tolerance) and max(window) > 1:
        raise UserError(
            f'{key} does not hold the log-spaced coordinates of any pretrained window: it is damaged, or '
            'another variant of the model.'
        )
    (rows, columns), (pretrained_rows, pretrained_columns) = window, pretrained
    return (rows, columns), (pretrained_rows, pretrained_columns)
