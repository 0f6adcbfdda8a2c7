"""Read the size of a model and its windows off the weights, and check every tensor against that size."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from swinv2_mm.checkpoints.windows import Pair, Windows
from swinv2_mm.errors import UserError, listed
from swinv2_mm.sizes import VARIANTS, Variant

CPB_HIDDEN = 512
# The entry of a backbone's state_dict that holds its pretrained windows: (stages, 2), rows and columns.
PRETRAINED_KEY = 'pretrained_windows'

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Geometry:
    """What shapes the parameters of a backbone: its arguments, and the blocks per extra norm, 0 for none."""

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
        size = Variant(self.embed_dims, self.depths, self.num_heads, self.extra_norm_every)
        return next((name for name, known in VARIANTS.items() if known == size), None)

    def arguments(self) -> dict[str, object]:
        """Keyword arguments that build the backbone, without those that equal its defaults."""
        size: dict[str, object] = {'arch': self.arch}
        if self.arch is None:
            # Only the two largest sizes have extra norms; a free size inherits them from there.
            base = 'huge' if self.extra_norm_every else 'tiny'
            size = dict(arch=base, embed_dims=self.embed_dims, depths=self.depths, num_heads=self.num_heads)
        usual = dict(in_channels=3, patch_size=4, mlp_ratio=4.0, qkv_bias=True)
        return size | {name: getattr(self, name) for name, value in usual.items() if getattr(self, name) != value}

    def shapes(self) -> Shapes:
        """The shape of every learned tensor of the backbone, without the output norms."""
        C = self.embed_dims
        shapes = _affine('patch_embed.proj', C, self.in_channels, self.patch_size, self.patch_size)
        shapes |= _affine('patch_embed.norm', C)
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            if i:
                C *= 2
                shapes[f'stages.{i}.downsample.reduction.weight'] = (C, 2 * C)
                shapes |= _affine(f'stages.{i}.downsample.norm', C)
            for j in range(depth):
                block = self._block(C, heads, j)
                shapes |= {f'stages.{i}.blocks.{j}.{name}': shape for name, shape in block.items()}
        return shapes

    def shapes_of_rest(self, model: str, classes: int) -> Shapes:
        """The shapes of what a model of :data:`~swinv2_mm.checkpoints.layouts.MODELS` has beside its backbone."""
        halved = 2 ** (len(self.depths) - 1)  # sides of the last map, and its channels grow by that
        C = self.embed_dims * halved
        if model == 'classifier':
            return _affine('head.fc', classes, C)
        painted = (self.patch_size * halved) ** 2 * self.in_channels
        return {'mask_token': (1, 1, self.embed_dims)} | _affine('decoder', painted, C, 1, 1)

    def _block(self, C: int, heads: int, index: int) -> Shapes:
        hidden = int(C * self.mlp_ratio)
        extra = self.extra_norm_every > 0 and (index + 1) % self.extra_norm_every == 0
        return {
            'attn.qkv.weight': (3 * C, C),
            **({'attn.q_bias': (C,), 'attn.v_bias': (C,)} if self.qkv_bias else {}),
            'attn.logit_scale': (heads, 1, 1),
            **_affine('attn.cpb_mlp.0', CPB_HIDDEN, 2),
            'attn.cpb_mlp.2.weight': (heads, CPB_HIDDEN),
            **_affine('attn.proj', C, C),
            **_affine('norm1', C),
            **_affine('norm2', C),
            **(_affine('norm3', C) if extra else {}),
            **_affine('mlp.fc1', hidden, C),
            **_affine('mlp.fc2', C, hidden),
        }


def _affine(name: str, *shape: int) -> Shapes:
    """Weight and bias of a layer."""
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def read_geometry(weights: Mapping[str, Tensor]) -> Geometry:
    """Read the size of the model off its weights, in our names, and check every tensor against it.

    Raises:
        UserError: Tensors are missing, unexpected, of a wrong shape, not floating-point, or hold NaN or infinity;
            the message lists them.
    """
    weights = {key: tensor for key, tensor in weights.items() if key != PRETRAINED_KEY}
    geometry = _guess(weights)
    wanted = geometry.shapes()
    for i in range(len(geometry.depths)):
        norm = _affine(f'norm{i}', geometry.embed_dims * 2**i)
        wanted |= norm if norm.keys() & weights.keys() else {}
    check_tensors(weights, wanted, 'no complete SwinV2 backbone')
    return geometry


def check_tensors(weights: Mapping[str, Tensor], wanted: Shapes, what: str) -> None:
    """Raise a UserError unless the weights are those wanted, in shape, and finite; ``what`` begins its message."""
    faults = {
        'are missing': [key for key in wanted if key not in weights],
        'belong to no part of it': [key for key in weights if key not in wanted],
        'have a shape that does not fit the others': [
            f'{key} {tuple(weights[key].shape)} instead of {shape}'
            for key, shape in wanted.items()
            if key in weights and weights[key].shape != shape
        ],
        'hold no floating-point numbers': [key for key, t in weights.items() if not t.is_floating_point()],
    }
    if not any(faults.values()):
        # NaN and infinity show in the minimum or the maximum, which need no mask of the tensor's size.
        bounds = {key: torch.aminmax(tensor) for key, tensor in weights.items()}
        faults = {'hold NaN or infinity': [key for key, found in bounds.items() if not all(map(math.isfinite, found))]}
    words = [f'{len(keys)} tensors {fault}: {listed(keys, 6)}' for fault, keys in faults.items() if keys]
    if words:
        raise UserError(f'{what}: {"; ".join(words)}')


def _guess(weights: Mapping[str, Tensor]) -> Geometry:
    """Read the size off a few tensors; the caller checks the others."""
    places = (re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', key) for key in weights)
    blocks = sorted({(int(place[1]), int(place[2])) for place in places if place})
    stages = range(blocks[-1][0] + 1) if blocks else range(0)
    depths = tuple(1 + max((j for i, j in blocks if i == stage), default=0) for stage in stages)
    conv = _shaped(weights, 'patch_embed.proj.weight', 4)
    hidden = _shaped(weights, 'stages.0.blocks.0.mlp.fc1.bias', 1)
    extra = [int(m[1]) for key in weights if (m := re.match(r'stages\.\d+\.blocks\.(\d+)\.norm3\.', key))]
    return Geometry(
        embed_dims=conv[0],
        depths=depths,
        num_heads=tuple(_shaped(weights, f'stages.{i}.blocks.0.attn.logit_scale', 3)[0] for i in stages),
        in_channels=conv[1],
        patch_size=conv[2],
        mlp_ratio=hidden[0] / conv[0],
        qkv_bias=any(key.endswith(('.q_bias', '.v_bias')) for key in weights),
        extra_norm_every=min(extra, default=-1) + 1,
    )


def _shaped(weights: Mapping[str, Tensor], key: str, ndim: int) -> tuple[int, ...]:
    if key not in weights:
        raise UserError(f'no complete SwinV2 backbone: {key} is missing.')
    shape = tuple(weights[key].shape)
    if len(shape) != ndim or 0 in shape:
        raise UserError(f'no SwinV2 backbone: {key} has the shape {shape}; {ndim} dimensions are expected.')
    return shape


def read_windows(tables: Mapping[str, Tensor]) -> tuple[Windows, Windows] | None:
    """Read the windows and the pretrained windows per stage off the coordinate tables; None if a stage has no table.

    The tables, by our keys, are ``(1, 2 Wh - 1, 2 Ww - 1, 2)``. It is a UserError if one is not of SwinV2, or if the
    blocks of a stage disagree.
    """
    found: dict[int, tuple[Pair, Pair]] = {}
    for key, table in tables.items():
        windows = _window_of(key, table)
        known = found.setdefault(int(key.split('.')[1]), windows)
        if known != windows:
            raise UserError(
                f'{key} is for a window of {windows[0]} and a pretrained window of {windows[1]}, another block of the '
                f'stage for {known[0]} and {known[1]}.'
            )
    if not found or sorted(found) != list(range(len(found))):
        return None
    windows, pretrained = zip(*(found[i] for i in range(len(found))), strict=True)
    return windows, pretrained


def told_windows(key: str, tensor: Tensor) -> Windows:
    """The pretrained windows in a state_dict of this backbone; a UserError if the tensor holds none."""
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
    window, pretrained, coords = [], [], []
    for axis, largest in enumerate(exact[-1, -1].tolist()):
        w = (shape[axis + 1] + 1) // 2
        ratio = 2 ** (3 * largest) - 1 if 0 < largest < 16 else 0.0
        p = round(1 + 8 * (w - 1) / ratio) if ratio else 1
        offsets = 8 * torch.arange(1 - w, w, dtype=torch.float64) / max(p - 1, 1)
        coords.append(offsets.sign() * offsets.abs().add(1).log2() / 3)
        window.append(w)
        pretrained.append(p)
    known = torch.stack(torch.meshgrid(*coords, indexing='ij'), dim=-1)
    tolerance = 1e-4 if table.dtype in (torch.float32, torch.float64) else 2e-2
    if not torch.allclose(exact, known, rtol=0, atol=tolerance) and max(window) > 1:
        raise UserError(
            f'{key} does not hold the log-spaced coordinates of any pretrained window: it is damaged, or '
            'another variant of the model.'
        )
    return (window[0], window[1]), (pretrained[0], pretrained[1])
