"""Adapt the patch embedding to another number of channels or another patch size."""

import torch
import torch.nn.functional as F
from torch import Tensor


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Convert an RGB kernel to another number of channels; the size of its response stays.

    A single channel gets the sum over the colours, so a grey image gives the same response as in RGB. More channels
    take the colours in turn, scaled by ``3 / channels``, as timm's ``adapt_input_conv`` does.

    ``weight`` is ``(C, 3, h, w)``, the result ``(C, channels, h, w)``.
    """
    colours = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = weight.repeat(1, -(-channels // colours), 1, 1)[:, :channels]
    return repeated * (colours / channels)


def adapt_patch(weight: Tensor, side: int) -> Tensor:
    """Resize a kernel; a resized patch gives the response of the patch (FlexiViT, arXiv 2212.08013, equation 3).

    With ``B`` the matrix that resizes patches bicubically, the new kernel is the least-squares solution of
    ``<B x, new> = <x, old>`` for all patches ``x``, as in timm's ``resample_patch_embed``.

    ``weight`` is ``(C, channels, h, h)``, the result ``(C, channels, side, side)``; ``side`` is in pixels.
    """
    old = weight.shape[-1]
    unit = torch.eye(old * old, dtype=torch.float64).view(old * old, 1, old, old)
    resize = F.interpolate(unit, (side, side), mode='bicubic', antialias=True)
    solve = torch.linalg.pinv(resize.view(old * old, side * side))  # of B transposed
    new = torch.einsum('so,cio->cis', solve, weight.double().flatten(2))
    return new.view(*weight.shape[:2], side, side).to(weight.dtype)
