"""The small layers around attention: MLP, stochastic depth, patch embedding, patch merging."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swinv2_mm.models.kernels import choose, cpp_token_passes
from swinv2_mm.models.kernels.choose import FORWARD, untouched
from swinv2_mm.models.kernels.linear import call, call_convolution, call_mlp
from swinv2_mm.models.window import is_padding, pad_bottom_right, padding_to_windows


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between; features in the last dimension."""

    def __init__(self, embed_dims: int, hidden_dims: int, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(embed_dims, hidden_dims)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden_dims, embed_dims)
        self.drop2 = nn.Dropout(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return call_mlp(self.fc1, self.act, self.drop1, self.fc2, self.drop2, x)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): zero a residual branch per sample, scale the kept ones by ``1 / keep``."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """``x`` plus the branch, both ``(B, ...)``."""
        kept = self._kept(branch)
        if kept is None:
            return x + branch
        kept = kept.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
        return torch.addcmul(x, branch.to(x.dtype), kept, value=1 / (1 - self.drop_prob))

    def scales(self, branch: Tensor) -> Tensor | None:
        """Draw the factor of each sample's branch, ``(B,)``; None if all are 1."""
        kept = self._kept(branch)
        return None if kept is None else kept.div_(1 - self.drop_prob)

    def _kept(self, branch: Tensor) -> Tensor | None:
        if not self.training or self.drop_prob == 0.0:
            return None
        return branch.new_empty(len(branch)).bernoulli_(1 - self.drop_prob)

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'


FORWARD[DropPath] = DropPath.forward


def add_branch(x: Tensor, branch: Tensor, norm: nn.Module, drop_path: nn.Module) -> Tensor:
    """``x + drop_path(norm(branch))``, in one pass over memory where the C++ computes it."""
    if untouched(norm, nn.LayerNorm) and untouched(drop_path, DropPath) and choose.norm_by_cpp(norm, x, branch):
        return cpp_token_passes.add_normalised(norm, x, branch, drop_path.scales(branch))
    return drop_path(x, norm(branch))


class PatchEmbed(nn.Module):
    """Image to tokens: a strided convolution, then a LayerNorm; zeros complete the last patches of an image."""

    def __init__(self, in_channels: int, embed_dims: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, embed_dims, kernel_size=patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, H, W)`` to ``(B, ceil(H / patch), ceil(W / patch), C)``."""
        bottom, right = padding_to_windows((x.shape[2], x.shape[3]), (self.patch_size, self.patch_size))
        if is_padding(bottom, right):
            x = F.pad(x, (0, right, 0, bottom))
        # In channels-last format the map comes out in the order in which all later layers read it.
        x = call_convolution(self.proj, x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)


class PatchMerging(nn.Module):
    """Halve the resolution, double the channels: 2x2 neighbours are concatenated, reduced, then normalised.

    SwinV2 normalises after the reduction, Swin V1 before it.
    """

    def __init__(self, in_dims: int, out_dims: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * in_dims, out_dims, bias=False)
        self.norm = nn.LayerNorm(out_dims)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, ceil(H / 2), ceil(W / 2), out_dims)``; an odd side is completed with zeros."""
        B, H, W, C = x.shape
        x = pad_bottom_right(x, *padding_to_windows((H, W), (2, 2)))
        x = x.view(B, (H + 1) // 2, 2, (W + 1) // 2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5)  # (B, H/2, W/2, 2 columns, 2 rows, C): Microsoft's order
        x = x.reshape(B, (H + 1) // 2, (W + 1) // 2, 4 * C)
        return self.norm(call(self.reduction, x))


def init_linear(module: nn.Module) -> None:
    """Microsoft's initialisation: linear weights from a normal of 0.02, truncated; biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


START_FROM_SCRATCH = 0.5
"""Weights of the norms after attention and after the MLP, at the start of a short training from random weights."""


def init_from_scratch(backbone: nn.Module) -> None:
    """Initialise for a short training from random weights: each linear layer keeps the scale of its input.

    Microsoft's standard deviation of 0.02 is for long trainings. Norms follow these layers, so a smaller scale is lost
    again, but a step of Adam turns small weights far: in a layer of 96 inputs five times as far as with
    ``1 / sqrt(96)``. With 0.02 GELU is nearly linear at first, too. The MLP of the position bias, which no norm
    follows, stays as it is. docs/pretraining.md has the measurements.
    """
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.Linear) and 'cpb_mlp' not in name:
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5)
