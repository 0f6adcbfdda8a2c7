"""A config with a backbone of another published size, and what each size needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from mmengine.config import Config

from swinv2_mm.engine.config.parts import nested
from swinv2_mm.engine.costs.plan import Row, Setting, averages, own_setting, with_setting
from swinv2_mm.engine.costs.plan.sharding import WAYS, held
from swinv2_mm.engine.costs.plan.step import Work, trace
from swinv2_mm.sizes import VARIANTS, get_variant


def plan_sizes(
    cfg: Config, processes: int, work: Work, track: Callable[[Sequence[str]], Iterable[str]] = iter
) -> dict[str, dict[str, Row]]:
    """What each published size of the backbone needs under each way of sharding, with all that saves memory."""
    chunk = own_setting(cfg).attn_chunk or 'auto'
    setting, found = Setting('ddp', True, chunk, True), {}
    for arch in track([*VARIANTS]):
        step = trace(with_setting(with_arch(cfg, arch), setting), replace(work, dtype=torch.bfloat16))
        copies = averages(cfg)
        found[arch] = {way: Row(replace(setting, way=way), held(step, way, processes, copies)) for way in WAYS}
    return found


def with_arch(cfg: Config, arch: str) -> Config:
    """A copy of a config whose backbone has another size, and whose heads take its maps.

    Channels of heads are those that the old backbone emits: all of them in a list, or one of them.
    """
    cfg = deepcopy(cfg)
    backbone = cfg.model.backbone
    old, new = _widths(backbone), _widths(dict(arch=arch))
    for key in ('embed_dims', 'depths', 'num_heads'):
        backbone.pop(key, None)
    backbone.arch = arch
    emitted = [old[i] for i in backbone.get('out_indices') or range(len(old))]
    for place, part in nested(cfg.model, 'model'):
        given = part.get('in_channels') if isinstance(part, dict) and part is not backbone else None
        if isinstance(given, list | tuple) and list(given) == emitted:
            part['in_channels'] = [new[old.index(width)] for width in given]
        elif isinstance(given, int) and given in emitted and place.startswith(('model.auxiliary_head', 'model.head')):
            part['in_channels'] = new[old.index(given)]
    return cfg


def _widths(backbone: Any) -> list[int]:
    variant = get_variant(backbone.get('arch', 'tiny'))
    first = backbone.get('embed_dims') or variant.embed_dims
    return [first * 2**i for i in range(len(backbone.get('depths') or variant.depths))]
