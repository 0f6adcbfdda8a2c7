"""SwinV2 of other code bases: the names and shapes of their tensors, and a forward pass that reads those names.

The forward pass is written from the paper and from what each code base does where they differ. It shares no code with
swinv2_mm; compare_with_real_peers.py checks it against the real models.
"""

import functools
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F


class Names(NamedTuple):
    """Where a code base keeps its modules; ``i`` is the stage, ``j`` the block, ``odd`` 2i + 1 and ``even`` 2i."""

    module: str
    embed: str
    embed_norm: str
    merge: str
    block: str
    attn: str
    fc1: str
    fc2: str
    norm: str


PEERS = dict(
    timm=Names(
        'timm.models.swin_transformer_v2',
        'patch_embed.proj',
        'patch_embed.norm',
        'layers.{i}.downsample',
        'layers.{i}.blocks.{j}',
        'attn',
        'mlp.fc1',
        'mlp.fc2',
        'norm',
    ),
    torchvision=Names(
        'torchvision.models.swin_transformer',
        'features.0.0',
        'features.0.2',
        'features.{even}',
        'features.{odd}.{j}',
        'attn',
        'mlp.0',
        'mlp.3',
        'norm',
    ),
    mmpretrain=Names(
        'mmpretrain.models.backbones.swin_transformer_v2',
        'patch_embed.projection',
        'patch_embed.norm',
        'stages.{i}.downsample',
        'stages.{i}.blocks.{j}',
        'attn.w_msa',
        'ffn.layers.0.0',
        'ffn.layers.1',
        'norm{i}',
    ),
)


@functools.cache
def import_peer(name):
    """The module that defines the peer's SwinV2, or None where it does not import.

    Another process tries first: a failed import leaves half a package behind, which could break later imports here.
    """
    if importlib.util.find_spec(name) is None:
        return None
    probe = subprocess.run([sys.executable, '-c', f'import {PEERS[name].module}'], capture_output=True)
    return importlib.import_module(PEERS[name].module) if probe.returncode == 0 else None


def recorded(name):
    """What the peer's Swin-T of window 8 saves: ``origin``, ``config``, and ``tensors``, from key to shape."""
    return json.loads((Path(__file__).parent / f'{name}.json').read_text())


def narrow(shapes, by=8):
    """The shapes of the recorded model with 96 / ``by`` channels instead of 96; heads and depths stay."""
    return {key: [n // by if n % 96 == 0 else n for n in shape] for key, shape in shapes.items()}


def coords_table(window, pretrained):
    """Log-spaced offsets, ``(1, 2Wh - 1, 2Ww - 1, 2)`` in float64; ``pretrained`` is the window that maps to 8."""
    axes = [
        8 * torch.arange(1 - w, w, dtype=torch.float64) / max(p - 1, 1) for w, p in zip(window, pretrained, strict=True)
    ]
    axes = [a.sign() * (1 + a.abs()).log2() / 3 for a in axes]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)[None]


def position_index(window):
    """For each pair of slots of a window the row of the flattened table, ``(N, N)``."""
    y, x = torch.meshgrid(torch.arange(window[0]), torch.arange(window[1]), indexing='ij')
    dy, dx = (c.flatten()[:, None] - c.flatten()[None, :] for c in (y, x))
    return (dy + window[0] - 1) * (2 * window[1] - 1) + dx + window[1] - 1


def random_state(shapes, seed=0, dtype=torch.float32, pretrained=None):
    """Random tensors for these keys, none at an initial value; a seed gives the same numbers in every dtype.

    Tables and indices are what the peer would compute: for ``pretrained`` windows by stage, else for its own window.
    Attention masks are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith('attn_mask'):
            continue
        if key.endswith('relative_coords_table'):
            window = [(n + 1) // 2 for n in shape[1:3]]
            stage = re.search(r'(?:layers|stages)[._](\d+)', key)
            state[key] = coords_table(window, [pretrained[int(stage[1])]] * 2 if pretrained else window).to(dtype)
            continue
        if key.endswith('relative_position_index'):
            side = round(math.prod(shape) ** 0.25)
            state[key] = position_index((side, side)).view(*shape)
            continue
        noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
        if key.endswith('logit_scale'):
            noise = 1 + 2 * noise  # on both sides of the clamp at log(100)
        elif len(shape) > 1:
            noise = noise * math.prod(shape[1:]) ** -0.5
        else:
            noise = 1 + 0.3 * noise if key.endswith('weight') else 0.1 * noise
        state[key] = noise.to(dtype)
    return state


def linear(w, name, x):
    return F.linear(x, w[name + '.weight'], w.get(name + '.bias'))


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[name + '.weight'], w[name + '.bias'])


def windows_of(x, window):
    """``(B, H, W, C)`` to ``(B, windows, slots, C)``."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def attention(w, prefix, x, window, shift, pretrained, mask_value):
    """Attention within the windows of a map that is completed with zero tokens, then rolled by ``shift``."""
    H, W = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, -W % window[1], 0, -H % window[0]))
    rows, cols = x.shape[1:3]
    x = windows_of(x.roll((-shift[0], -shift[1]), (1, 2)), window)
    if prefix + '.qkv.bias' in w:  # torchvision has a bias for the keys too, and sets it to zero as it computes
        q_bias, _, v_bias = w[prefix + '.qkv.bias'].chunk(3)
    else:
        q_bias, v_bias = w[prefix + '.q_bias'], w[prefix + '.v_bias']
    qkv = F.linear(x, w[prefix + '.qkv.weight'], torch.cat([q_bias, torch.zeros_like(q_bias), v_bias]))
    scale = w[prefix + '.logit_scale'].clamp(max=math.log(100)).exp()  # (nH, 1, 1)
    q, k, v = qkv.unflatten(-1, (3, len(scale), -1)).permute(3, 0, 1, 4, 2, 5)  # (B, windows, nH, N, d)
    table = coords_table(window, pretrained).to(x.dtype)[0].flatten(0, 1)
    table = linear(w, prefix + '.cpb_mlp.2', linear(w, prefix + '.cpb_mlp.0', table).relu())
    logits = scale * (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2))
    logits = logits + 16 * table[position_index(window)].sigmoid().permute(2, 0, 1)
    # Only the last window of an axis mixes rolled-in tokens with others.
    rolled = [torch.arange(n) >= (n - s if s else n) for n, s in zip((rows, cols), shift, strict=True)]
    region = windows_of((2 * rolled[0][:, None] + rolled[1][None, :])[None, :, :, None], window)[0, :, :, 0]
    apart = (region[:, :, None] != region[:, None, :])[:, None]
    x = (logits + torch.zeros_like(logits).masked_fill(apart, mask_value)).softmax(-1) @ v
    x = linear(w, prefix + '.proj', x.transpose(2, 3).flatten(-2))
    x = x.unflatten(2, window).unflatten(1, (rows // window[0], cols // window[1]))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x.roll(tuple(shift), (1, 2))[:, :H, :W]


def merge(name, w, prefix, x):
    """Four neighbours to one token. mmpretrain orders them by channel, row, column; others by column, row, channel."""
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, 2, w, 2, C)
    order = (0, 1, 3, 5, 2, 4) if name == 'mmpretrain' else (0, 1, 3, 4, 2, 5)
    return layer_norm(w, prefix + '.norm', linear(w, prefix + '.reduction', x.permute(order).flatten(3)))


def geometry(name, size, window, pad_small_map):
    """The window that the peer uses for a map, and how far it shifts it in every second block."""
    half = [window // 2 if n > window else 0 for n in size]
    if name == 'timm':  # shrinks the window to the map, each axis for itself
        window = [min(n, window) for n in size]
        if any(n % w for n, w in zip(size, window, strict=True)):
            raise ValueError(f'windows {window} do not tile {size}: timm completes maps after the roll, not before')
        return window, half
    if name == 'mmpretrain':  # one decision for both axes; the default refuses a map smaller than the window
        if min(size) < window and not pad_small_map:
            raise ValueError(f'the map {size} is smaller than the window {window}; set pad_small_map')
        half = [window // 2 if pad_small_map or min(size) > window else 0] * 2
    return [window, window], half  # torchvision too completes a small map, but does not shift along it


def features_from_keys(name, state, image, window=8, pretrained=None, pad_small_map=False, mask_value=-100.0):
    """The maps of all stages before any output norm, and the last one after the peer's final norm (None without one).

    Maps are ``(B, C, h, w)`` in the dtype of ``state``, which must also be that of ``image``, ``(B, 3, H, W)``.

    Args:
        window: The configured window, one for all stages or one each; depths, widths and heads are read off the keys.
        pretrained: The window of the pre-training by stage; 0 or None: the window that attention uses in that stage.
        pad_small_map: As in mmpretrain: complete maps smaller than the window, and shift there too.
        mask_value: Added to masked logits. All peers add -100; -inf masks fully.
    """
    if name == 'torchvision' and pretrained:
        raise ValueError('torchvision normalises offsets by its window, always')
    names = PEERS[name]
    w = {key.removeprefix('backbone.'): value for key, value in state.items()}
    kernel = w[names.embed + '.weight']
    x = F.conv2d(image, kernel, w[names.embed + '.bias'], stride=kernel.shape[-1])
    x = layer_norm(w, names.embed_norm, x.permute(0, 2, 3, 1))
    maps = []
    place = lambda i, j=0: names.block.format(i=i, odd=2 * i + 1, j=j)  # noqa: E731
    while place(len(maps)) + '.norm1.weight' in w:
        i, j = len(maps), 0
        if i:
            x = merge(name, w, names.merge.format(i=i, even=2 * i), x)
        stage_window = window if isinstance(window, int) else window[i]
        size, half = geometry(name, x.shape[1:3], stage_window, pad_small_map)
        p = [pretrained[i]] * 2 if pretrained and pretrained[i] else size
        while (block := place(i, j)) + '.norm1.weight' in w:
            out = attention(w, f'{block}.{names.attn}', x, size, half if j % 2 else [0, 0], p, mask_value)
            x = x + layer_norm(w, block + '.norm1', out)
            out = linear(w, f'{block}.{names.fc2}', F.gelu(linear(w, f'{block}.{names.fc1}', x)))
            x = x + layer_norm(w, block + '.norm2', out)
            if block + '.norm3.weight' in w:  # mmpretrain's huge and giant models, every sixth block
                x = layer_norm(w, block + '.norm3', x)
            j += 1
        maps.append(x.permute(0, 3, 1, 2))
    final = names.norm.format(i=len(maps) - 1)
    return maps, layer_norm(w, final, x).permute(0, 3, 1, 2) if final + '.weight' in w else None
