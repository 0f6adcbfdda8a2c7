"""Will a training fit? What each process needs under each setting that saves memory, and the fastest that fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from mmengine.config import Config

from swinv2_mm.compat import VERSION
from swinv2_mm.engine.config.batches import input_size
from swinv2_mm.engine.costs import check_backbone, image_shape
from swinv2_mm.engine.costs.plan.sharding import WAYS, Held, held
from swinv2_mm.engine.costs.plan.step import Step, Work, trace
from swinv2_mm.errors import UserError

GIB = 2**30
# What a process takes beside its tensors, the contexts of CUDA, cuBLAS and NCCL with their buffers: an estimate. And a
# share of the tensors for what the allocator cannot use, workspaces of kernels, and the error of the plan, up to 8 % on
# a CPU (docs/large_models.md).
CONTEXT_BYTES, MARGIN = 2 * GIB, 0.10
RUNNERS = dict(ddp='Runner', zero1='swinv2_mm.Zero1Runner', fsdp2='swinv2_mm.FSDP2Runner')
# How long a step takes with each of them, relative to one without: for the order alone. Half precision has twice the
# rate; with_cp repeats the forward pass, a third of a step; FSDP2 sends half as much again.
_SLOWER = dict(float32=2.0, with_cp=1.33, attn_chunk=1.02, ddp=1.0, zero1=1.01, fsdp2=1.1)


@dataclass(frozen=True)
class Setting:
    """What a training does to save memory."""

    way: str  # of sharding, one of WAYS
    with_cp: bool
    attn_chunk: str | int | None
    half: bool  # mixed precision, --amp bf16

    @property
    def slowness(self) -> float:
        """For the order: the time of a step relative to that of the fastest setting."""
        found = _SLOWER[self.way]
        for name, on in (('float32', not self.half), ('with_cp', self.with_cp), ('attn_chunk', self.attn_chunk)):
            found *= _SLOWER[name] if on else 1.0
        return found


@dataclass(frozen=True)
class Row:
    """A setting and what the fullest process holds with it."""

    setting: Setting
    held: Held

    @property
    def needs(self) -> float:
        """Bytes of a GPU, with what is no tensor."""
        return self.held.total * (1 + MARGIN) + CONTEXT_BYTES


@dataclass(frozen=True)
class Plan:
    """All settings of a training, the fastest first."""

    own: Setting  # that of the config
    work: Work
    processes: int
    memory: float  # of a GPU, in bytes
    rows: tuple[Row, ...]
    step: Step  # of the config as it is

    def fits(self, row: Row) -> bool:
        return row.needs <= self.memory

    def fastest(self, half: bool) -> Row | None:
        """The fastest setting of a precision that fits."""
        return next((row for row in self.rows if row.setting.half == half and self.fits(row)), None)

    @property
    def nearest(self) -> Row:
        """The setting that needs least."""
        return min(self.rows, key=lambda row: row.needs)


def plan(
    cfg: Config,
    processes: int,
    memory: float,
    work: Work,
    track: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Plan:
    """Plan a training.

    Args:
        cfg: Of a training, as read.
        memory: Of each GPU, in bytes.
        work: See :func:`work_of`; its type is not looked at, since both are planned.
        track: Wraps the steps that are traced, to show progress.

    Raises:
        UserError: torch is too old, or the config cannot be planned.
    """
    check_version()
    check_backbone(cfg.model)
    own, steps, rows = own_setting(cfg), {}, []
    ways = WAYS if processes > 1 else (own.way,)  # a process alone trains as always
    kinds = list(itertools.product((False, True), _chunks(own), (True, False)))
    for with_cp, chunk, half in track(kinds):
        setting = Setting('ddp', with_cp, chunk, half)
        steps[with_cp, chunk, half] = step = trace(
            with_setting(cfg, setting), replace(work, dtype=torch.bfloat16 if half else None)
        )
        rows += [Row(replace(setting, way=way), held(step, way, processes, averages(cfg))) for way in ways]
    rows.sort(key=lambda row: (row.setting.slowness, row.needs))
    return Plan(own, work, processes, memory, tuple(rows), steps[own.with_cp, own.attn_chunk, own.half])


def check_version() -> None:
    """Raise a UserError where torch lacks too many operations without memory."""
    if VERSION < (2, 4):
        raise UserError(
            f'planning needs torch 2.4 or newer, which computes shapes of all operations, and this is '
            f'{torch.__version__}.'
        )


def work_of(cfg: Config, shape: Sequence[int] | None, batch: int | None, objects: int, device: str = 'cuda') -> Work:
    """What a process does in a step: what was asked for, else what the config says of its training.

    Raises:
        UserError: Neither says how large the images are, or a number is below 1.
    """
    loader = cfg.get('train_dataloader') or {}
    batch = loader.get('batch_size') if batch is None else batch
    if not isinstance(batch, int) or batch < 1:
        raise UserError(f'--batch: expected the images of a process, 1 or more, not {batch}.')
    if objects < 1:
        raise UserError(f'--objects: expected the objects of an image, 1 or more, not {objects}.')
    own = input_size(cfg)
    if shape is None and own is None:
        raise UserError(
            '--shape: the config does not say how large the images of its training are; give rows and columns, as in '
            '--shape 800 1333.'
        )
    rows, columns = image_shape(shape, own)
    multiple = (cfg.model.get('data_preprocessor') or {}).get('pad_size_divisor') or 1
    padded = -(-rows // multiple) * multiple, -(-columns // multiple) * multiple
    return Work(padded, batch, objects, device)


def own_setting(cfg: Config) -> Setting:
    """What a config does to save memory."""
    backbone, wrapper = cfg.model.backbone, cfg.get('optim_wrapper') or {}
    kinds = {kind: way for way, kind in RUNNERS.items()}
    kind = str(wrapper.get('type')).split('.')[-1]
    return Setting(
        kinds.get(cfg.get('runner_type'), 'ddp'),
        bool(backbone.get('with_cp')),
        backbone.get('attn_chunk'),
        kind == 'AmpOptimWrapper',
    )


def _chunks(own: Setting) -> list[str | int | None]:
    return [None, 'auto' if own.attn_chunk is None else own.attn_chunk]


def with_setting(cfg: Config, setting: Setting) -> Config:
    """A copy of a config with what a setting does to its backbone."""
    cfg = deepcopy(cfg)
    if bool(cfg.model.backbone.get('with_cp')) != setting.with_cp:
        cfg.model.backbone.with_cp = setting.with_cp
    cfg.model.backbone.attn_chunk = setting.attn_chunk
    return cfg


def averages(cfg: Config) -> int:
    """How many running averages of the parameters a training keeps."""
    hooks = cfg.get('custom_hooks') or []
    return sum(str(hook.get('type')).split('.')[-1] == 'EMAHook' for hook in hooks if isinstance(hook, dict))


def options(own: Setting, wanted: Setting) -> tuple[list[str], list[str]]:
    """What turns the setting of a config into another: values of ``--cfg-options``, and flags of ``tools/train.py``."""
    found = []
    if own.with_cp != wanted.with_cp:
        found.append(f'model.backbone.with_cp={wanted.with_cp}')
    if own.attn_chunk != wanted.attn_chunk:
        found.append(f'model.backbone.attn_chunk={wanted.attn_chunk}')
    if own.way != wanted.way:
        found.append(f'runner_type={RUNNERS[wanted.way]}')
    flags = [] if own.half == wanted.half else ['--amp bf16' if wanted.half else '--amp fp32']
    return found, flags
