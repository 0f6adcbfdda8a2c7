"""SwinV2 written slowly from the paper: loops over windows and pairs of tokens, no roll, no masks, no caches.

It shares no code with swinv2_mm; it reads a backbone's state_dict, and computes in its dtype.
"""

import math

import torch
import torch.nn.functional as F


def position_bias(weights, prefix, dy, dx, pretrained):
    """Equations 3 and 4: the bias of every head for one offset."""
    coords = []
    for offset, p in zip((dy, dx), pretrained, strict=True):
        scaled = 8 * offset / max(p - 1, 1)
        coords.append(math.copysign(math.log2(1 + abs(scaled)) / math.log2(8), scaled))
    dtype = weights[prefix + 'cpb_mlp.0.weight'].dtype
    hidden = weights[prefix + 'cpb_mlp.0.weight'] @ torch.tensor(coords, dtype=dtype)
    hidden = hidden + weights[prefix + 'cpb_mlp.0.bias']
    return 16 / (1 + torch.exp(-(weights[prefix + 'cpb_mlp.2.weight'] @ hidden.clamp(min=0))))  # (nH,)


def window_members(H, W, window, shifted, mask_padding):
    """For each token, the positions that it attends to; positions outside (H, W) are zero tokens.

    A window of the shifted tiling starts half a window later; at the far border it continues with what the plain
    tiling leaves over, but tokens are only ever combined if their true distance is less than a window.
    """
    length = [-(-size // w) * w for size, w in zip((H, W), window, strict=True)]
    shift = [w // 2 if shifted and n > w else 0 for n, w in zip(length, window, strict=True)]
    index = lambda position, axis: ((position - shift[axis]) % length[axis]) // window[axis]  # noqa: E731
    rows, cols = (H, W) if mask_padding else length
    for y in range(H):
        for x in range(W):
            yield (
                (y, x),
                [
                    (v, u)
                    for v in range(rows)
                    for u in range(cols)
                    if index(v, 0) == index(y, 0)
                    and abs(v - y) < window[0]
                    and index(u, 1) == index(x, 1)
                    and abs(u - x) < window[1]
                ],
            )


def attention(weights, prefix, x, num_heads, window, pretrained, shifted, mask_padding):
    """Section 3.2 and 3.3, token by token. ``x`` is ``(H, W, C)``."""
    H, W, C = x.shape
    if mask_padding:
        window = (min(H, window[0]), min(W, window[1]))
    q_bias, v_bias = weights[prefix + 'q_bias'], weights[prefix + 'v_bias']

    def project(token):
        qkv = weights[prefix + 'qkv.weight'] @ token
        q, k, v = qkv.chunk(3)
        return [t.view(num_heads, -1) for t in (q + q_bias, k, v + v_bias)]

    zero = torch.zeros(C, dtype=x.dtype)
    cache = {}
    biases = {}
    scale = weights[prefix + 'logit_scale'].view(-1).clamp(max=math.log(100)).exp()
    out = torch.empty_like(x)
    for (y, xx), members in window_members(H, W, window, shifted, mask_padding):
        for p in (*members, (y, xx)):
            if p not in cache:
                cache[p] = project(x[p] if p[0] < H and p[1] < W else zero)
        q = F.normalize(cache[y, xx][0], dim=-1)
        logits = []
        for p in members:
            offset = (y - p[0], xx - p[1])
            if offset not in biases:
                biases[offset] = position_bias(weights, prefix, *offset, pretrained)
            logits.append((q * F.normalize(cache[p][1], dim=-1)).sum(-1) * scale + biases[offset])
        probs = torch.stack(logits).softmax(dim=0)  # (members, nH)
        mixed = sum(probs[i, :, None] * cache[p][2] for i, p in enumerate(members))  # (nH, d)
        out[y, xx] = weights[prefix + 'proj.weight'] @ mixed.reshape(-1) + weights[prefix + 'proj.bias']
    return out


def layer_norm(weights, prefix, x):
    return F.layer_norm(x, x.shape[-1:], weights[prefix + 'weight'], weights[prefix + 'bias'])


def block(weights, prefix, x, **attn_args):
    """Section 3.1: each branch is normalised after it, then added."""
    x = x + layer_norm(weights, prefix + 'norm1.', attention(weights, prefix + 'attn.', x, **attn_args))
    hidden = F.gelu(x @ weights[prefix + 'mlp.fc1.weight'].T + weights[prefix + 'mlp.fc1.bias'])
    x = x + layer_norm(
        weights, prefix + 'norm2.', hidden @ weights[prefix + 'mlp.fc2.weight'].T + weights[prefix + 'mlp.fc2.bias']
    )
    return layer_norm(weights, prefix + 'norm3.', x) if prefix + 'norm3.weight' in weights else x


def merge(weights, prefix, x):
    """2x2 neighbours, read down the columns, side by side; zeros complete an odd side."""
    H, W, C = x.shape
    even = torch.zeros(H + H % 2, W + W % 2, C, dtype=x.dtype)
    even[:H, :W] = x
    x = torch.cat([even[0::2, 0::2], even[1::2, 0::2], even[0::2, 1::2], even[1::2, 1::2]], dim=-1)
    return layer_norm(weights, prefix + 'norm.', x @ weights[prefix + 'reduction.weight'].T)


def backbone(weights, image, depths, num_heads, windows, pretrained, patch=4, mask_padding=True):
    """Feature maps ``(C, h, w)`` of one image ``(3, H, W)``, for all stages."""
    H, W = image.shape[1:]
    x = F.pad(image, (0, -W % patch, 0, -H % patch))
    x = F.conv2d(x[None], weights['patch_embed.proj.weight'], weights['patch_embed.proj.bias'], stride=patch)[0]
    x = layer_norm(weights, 'patch_embed.norm.', x.permute(1, 2, 0))
    maps = []
    for i, depth in enumerate(depths):
        if i:
            x = merge(weights, f'stages.{i}.downsample.', x)
        for j in range(depth):
            x = block(
                weights,
                f'stages.{i}.blocks.{j}.',
                x,
                num_heads=num_heads[i],
                window=windows[i],
                pretrained=pretrained[i],
                shifted=j % 2 == 1,
                mask_padding=mask_padding,
            )
        maps.append(layer_norm(weights, f'norm{i}.', x).permute(2, 0, 1))
    return maps
