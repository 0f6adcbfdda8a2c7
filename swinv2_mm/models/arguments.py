"""Check the backbone's arguments: an error names the argument, its value and the remedy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeGuard

Pair = tuple[int, int]


def integer(name: str, value: Any, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f'{name}={value!r} must be a whole number, at least {minimum}.')
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f'{name}={value!r} must be True or False.')


def probability(name: str, value: Any) -> None:
    if not _is_number(value) or not 0 <= value < 1:
        raise ValueError(f'{name}={value!r} is a probability; give a number in [0, 1).')


def choice(name: str, value: Any, *known: str) -> None:
    if value not in known:
        raise ValueError(f'{name}={value!r} is unknown; choose {", ".join(map(repr, known[:-1]))} or {known[-1]!r}.')


def check_mlp_ratio(value: Any, embed_dims: int) -> None:
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f'mlp_ratio={value!r} must be a positive number; SwinV2 uses 4.')
    if int(embed_dims * value) < 1:
        raise ValueError(f'mlp_ratio={value!r} leaves no channel of {embed_dims}; SwinV2 uses 4.')


def is_sequence(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str)


def integers(name: str, values: Any, minimum: int) -> tuple[int, ...]:
    if not is_sequence(values) or not values:
        raise ValueError(f'{name}={values!r} must be a list with one whole number per stage.')
    return tuple(integer(f'{name}[{i}]', value, minimum) for i, value in enumerate(values))


def windows_per_stage(name: str, value: Any, stages: int, minimum: int) -> list[Pair]:
    """Turn a window size into one pair ``(Wh, Ww)`` per stage."""
    per_stage = list(value) if is_sequence(value) else [value] * stages
    if len(per_stage) != stages:
        raise ValueError(
            f'{name}={value!r} has {len(per_stage)} entries for {stages} stages; give one number, or one '
            f'entry per stage. Windows that are not square: {name}=[(Wh, Ww)] * {stages}.'
        )
    pairs: list[Any] = [tuple(entry) if is_sequence(entry) else (entry, entry) for entry in per_stage]
    for i, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f'{name}[{i}]={pair!r} must be a number or a pair (Wh, Ww).')
        for side in pair:
            integer(f'{name}[{i}]', side, minimum)
    return pairs


def check_heads(dims: Sequence[int], num_heads: Sequence[int]) -> None:
    if len(num_heads) != len(dims):
        raise ValueError(
            f'num_heads={list(num_heads)!r} has {len(num_heads)} entries, depths has {len(dims)}; '
            'give one number of heads per stage.'
        )
    for i, (dim, number) in enumerate(zip(dims, num_heads, strict=True)):
        if dim % number:
            raise ValueError(
                f'num_heads[{i}]={number} does not divide the {dim} channels of stage {i}; '
                f'the published sizes use {max(dim // 32, 1)} (head width 32).'
            )


def checkpointed_stages(value: Any, stages: int) -> Sequence[int]:
    if isinstance(value, bool):
        return range(stages) if value else ()
    if not is_sequence(value) or any(isinstance(i, bool) or i not in range(stages) for i in value):
        raise ValueError(f'with_cp={value!r} must be True, False, or a list of stages out of {list(range(stages))}.')
    return value


def emitted_stages(value: Any, stages: int) -> tuple[int, ...]:
    whole = is_sequence(value) and all(type(i) is int and i in range(-stages, stages) for i in value)
    indices = tuple(i % stages for i in value) if whole else ()
    if not indices or list(indices) != sorted(set(indices)):
        raise ValueError(
            f'out_indices={value!r} must list stages in rising order, each once, out of '
            f'{list(range(stages))}, or counted from the last, {list(range(-stages, 0))}.'
        )
    return indices


def check_frozen(value: Any, stages: int) -> None:
    if type(value) is not int or value not in range(-1, stages + 1):
        raise ValueError(
            f'frozen_stages={value!r} must be a whole number from -1 (nothing frozen) to {stages} (all stages).'
        )


def check_attention(attn_chunk: Any, attn_backend: Any, attn_drop_rate: float) -> None:
    if attn_chunk is not None and attn_chunk != 'auto':
        integer('attn_chunk', attn_chunk, 1)
    choice('attn_backend', attn_backend, 'auto', 'sdpa', 'cpp', 'triton')
    if attn_backend in ('cpp', 'triton') and attn_drop_rate:
        raise ValueError(
            f'attn_backend={attn_backend!r} has no dropout, but attn_drop_rate={attn_drop_rate!r}; leave out one.'
        )


# Arguments of other backbones and their replacements: Swin V1 of MMDetection, MMSegmentation and MMPretrain, Swin V2 of
# MMPretrain, timm and Microsoft.
_REPLACED = {
    name: instead
    for instead, names in {
        "init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint=...)": 'pretrained',
        "nothing: init_cfg=dict(type='swinv2_mm.Pretrained', checkpoint=...) recognises the layout": 'convert_weights',
        'nothing: images of any size are taken': 'pretrain_img_size img_size strict_img_size dynamic_mask',
        'nothing: the position bias is continuous': 'interpolate_mode',
        'nothing: a window larger than the map is shrunk to it': 'pad_small_map always_partition',
        'nothing: SwinV2 has no absolute positions': 'use_abs_pos_embed ape',
        'nothing: SwinV2 learns the scale of its logits': 'qk_scale',
        'nothing: SwinV2 has LayerNorms, in fixed places': 'patch_norm norm_cfg norm_layer',
        'nothing: maps are emitted as they leave their stage': 'out_after_downsample',
        'nothing: the activation is GELU': 'act_cfg act_layer',
        'patch_size; each stage then halves the map': 'strides',
        'patch_size': 'patch_cfg',
        'arguments of the backbone, which hold for all stages': 'stage_cfgs',
        'drop_rate': 'drop_after_pos proj_drop_rate pos_drop_rate',
        'embed_dims': 'embed_dim',
        'in_channels': 'in_chans',
        'with_cp': 'use_checkpoint',
        'out_indices': 'features_only',
        'nothing: this is a backbone': 'num_classes global_pool',
        'arch': 'extra_norm_every_n_blocks norm_period',
    }.items()
    for name in names.split()
}


def refuse_unknown(function: Callable, unknown: Mapping[str, Any]) -> None:
    """Refuse arguments that a function does not have, all in one message, each with its replacement.

    Raises:
        TypeError: ``unknown`` is not empty.
    """
    if not unknown:
        return
    known = [name for name, p in inspect.signature(function).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    said = []
    for name in unknown:
        close = get_close_matches(name, known, n=1)
        instead = f'write {_REPLACED[name]}' if name in _REPLACED else f'Did you mean {close[0]}?' if close else ''
        said.append(f'{name!r}{f" ({instead})" if instead else ""}'.replace('write nothing', 'leave it out'))
    raise TypeError(f'SwinTransformerV2 got an unexpected keyword argument {", ".join(said)}')
