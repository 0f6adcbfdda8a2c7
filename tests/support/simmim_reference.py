"""SimMIM by others: the formulas of its paper, written slowly, and Hugging Face's model."""

import math

import numpy as np
import torch
import torch.nn.functional as F

from swinv2_mm import SimMIM
from swinv2_mm.checkpoints.convert import convert_state_dict

SIZE = dict(embed_dims=16, depths=(2, 1, 2, 1), num_heads=(2, 2, 4, 4))


def hidden_count(patches, ratio):
    """Patches that Microsoft's generator of masks hides."""
    return int(np.ceil(patches * ratio))


def normalised(image, side):
    """``(C, H, W)``: each pixel minus the mean of its square, by the square's unbiased standard deviation."""
    reach = side // 2
    padded = F.pad(image, (reach,) * 4, value=math.nan)
    out = torch.empty_like(image)
    for y in range(image.shape[1]):
        squares = padded[:, y : y + side].unfold(2, side, 1)  # (C, side rows, W, side columns)
        squares = squares.transpose(1, 2).flatten(2)  # (C, W, side * side)
        apart = squares - squares.nanmean(-1, keepdim=True)
        variance = apart.square().nansum(-1) / (squares.isfinite().sum(-1) - 1)
        out[:, y] = (image[:, y] - squares.nanmean(-1)) / (variance + 1e-6).sqrt()
    return out


def loss(images, painted, mask, side):
    """The mean over hidden pixels and channels, of masks ``(B, rows, columns)``; one patch after the other."""
    total, count = 0, 0
    height, width = images.shape[-2] // mask.shape[-2], images.shape[-1] // mask.shape[-1]
    for image, paint, hidden in zip(images, painted, mask, strict=True):
        target = image if side is None else normalised(image, side)
        for row, column in hidden.nonzero().tolist():
            rows = slice(row * height, (row + 1) * height)
            columns = slice(column * width, (column + 1) * width)
            total = total + (target[:, rows, columns] - paint[:, rows, columns]).abs().sum()
            count += height * width
    return total / (count + 1e-5) / images.shape[1]


def hugging_face(side, window):
    """Hugging Face's SimMIM for images of ``side`` pixels; it takes a value of the mask per token, row by row."""
    import transformers

    config = transformers.Swinv2Config(
        image_size=side,
        embed_dim=SIZE['embed_dims'],
        depths=list(SIZE['depths']),
        num_heads=list(SIZE['num_heads']),
        window_size=window,
        encoder_stride=32,
        drop_path_rate=0.0,
    )
    return transformers.Swinv2ForMaskedImageModeling(config)


def painted_by(peer, images, mask):
    """What Hugging Face's model paints, and its own loss, with targets as they are."""
    factor = peer.config.image_size // 4 // mask.shape[-1]
    tokens = mask.repeat_interleave(factor, 1).repeat_interleave(factor, 2).flatten(1)
    found = peer(images, bool_masked_pos=tokens)
    return found.reconstruction, found.loss


def ours_like(peer, window, **options):
    """Our model with the weights of Hugging Face's."""
    backbone = dict(type='swinv2_mm.SwinTransformerV2', window_size=window, drop_path_rate=0.0, **SIZE)
    model = SimMIM(backbone, **options)
    model.load_state_dict(in_our_names({name: parameter.detach() for name, parameter in peer.named_parameters()}))
    return model.to(next(peer.parameters()).dtype)


def in_our_names(tensors):
    """Hugging Face's parameters, or their gradients, as ours: the same numbers in another order."""
    inner = {name.removeprefix('swinv2.'): tensor for name, tensor in tensors.items() if name.startswith('swinv2.')}
    ours = {f'backbone.{name}': tensor for name, tensor in convert_state_dict(inner).weights.items()}
    ours |= {f'decoder.{name}': tensors[f'decoder.0.{name}'] for name in ('weight', 'bias')}
    return ours | {'mask_token': tensors['swinv2.embeddings.mask_token']}


def drawn(batch, rows, columns, seed=0):
    """A mask that hides 60 % of the patches, of its own generator."""
    generator = np.random.default_rng(seed)
    order = np.stack([generator.permutation(rows * columns) for _ in range(batch)])
    return torch.from_numpy(order < hidden_count(rows * columns, 0.6)).view(batch, rows, columns)
